import json
from dataclasses import dataclass, replace

import pytest
import torch
from matplotlib.image import imread
from torch import nn

from skeletal.core.masks.mask import Mask
from skeletal.harness.bench import Setting, bench, contestants, peers
from skeletal.harness.bench.contest import interleaved
from skeletal.harness.bench.contestants import CONTESTANTS, masked_copy
from skeletal.harness.bench.memory import peak_memory
from skeletal.harness.bench.plot import plot_roofline
from skeletal.harness.bench.roofline import Machine, Work, work
from skeletal.harness.bench.table import table
from tests.cases import convnet

MACHINE = Machine(float32=1e9, bfloat16=2e9, bandwidth=1e8)


@dataclass(frozen=True, kw_only=True)
class Tiny(Setting):
    """A convnet of two convolutions, whatever name is given."""

    def network(self) -> nn.Module:
        return convnet()


def random_mask(model, density):
    generator = torch.Generator().manual_seed(0)
    weights = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return Mask({name: torch.rand(w.shape, generator=generator) < density for name, w in weights.items()})


TINY = Tiny(model="tiny", data="cifar10", batch_size=4)
LAYERS = {
    "3x3": nn.Conv2d(4, 6, 3, padding=1),
    "3x3, stride 2, no bias": nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "dilated": nn.Conv2d(4, 6, (3, 1), dilation=2, padding=(2, 0)),
    "1x1, stride 2": nn.Conv2d(4, 6, 1, stride=2),
    "linear": nn.Linear(9, 5),
    "linear, no bias": nn.Linear(9, 5, bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_csr_layers_equal_the_masked_layer_and_its_gradients(name):
    torch.manual_seed(0)
    layer = LAYERS[name]
    keep = torch.rand(layer.weight.shape) < 0.3
    layer.weight.data *= keep
    x = torch.randn(2, 7, 9) if isinstance(layer, nn.Linear) else torch.randn(3, 4, 9, 8)
    expected_x, found_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    other = peers.csr(layer, keep, x)
    expected, found = layer(expected_x), other(found_x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradient = torch.randn_like(expected)
    weights = torch.autograd.grad(expected, [expected_x, layer.weight], gradient)
    values = torch.autograd.grad(found, [found_x, other.weight], gradient)
    torch.testing.assert_close(values[0], weights[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values[1], weights[1][keep], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("peer", ["sparseprop", "sparselab"])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_peers_equal_the_masked_layer_where_they_are_installed(peer):
    pytest.importorskip(peer)
    torch.manual_seed(0)
    for layer in (nn.Linear(64, 32), nn.Conv2d(8, 16, 3, padding=1)):
        keep = torch.rand(layer.weight.shape) < 0.1
        layer.weight.data *= keep
        x = torch.randn(16, 64) if isinstance(layer, nn.Linear) else torch.randn(16, 8, 8, 8)
        other = getattr(peers, peer)(layer, keep, x)
        if other is not None:
            torch.testing.assert_close(other(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_all_ways_train_alike():
    model, (inputs, targets) = TINY.network(), TINY.batch()
    mask = random_mask(model, 0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ways = {key: CONTESTANTS[key].build(model, mask, inputs, targets) for key in ("a", "ours", "ours16", "c")}
    logits = {}
    for key, way in ways.items():
        first = way.infer()
        for _ in range(3):
            way.train()
        logits[key] = way.infer()
        assert not torch.allclose(first, logits[key], atol=1e-3)
    for key in ("ours", "c"):
        torch.testing.assert_close(logits[key], logits["a"], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(logits["ours16"], logits["a"], atol=0.05, rtol=0.05)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rest = sum(p.numel() for p in model.parameters()) - mask.total
    assert ways["c"].state() == dict.fromkeys(("weights", "gradients", "optimizer"), 4 * (mask.kept + rest))
    assert ways["a"].state() == dict.fromkeys(("weights", "gradients", "optimizer"), 4 * (mask.total + rest))


def test_the_dense_way_holds_pruned_weights_at_zero():
    model, (inputs, targets) = TINY.network(), TINY.batch()
    mask = random_mask(model, 0.3)
    for channels_last in (False, True):
        network = masked_copy(model, mask, channels_last=channels_last)
        way = contestants.stepper(network, inputs, targets, about="")
        for _ in range(3):
            way.train()
        mask.check(network)


def test_the_best_dense_way_is_one_of_four_and_untrained():
    model, (inputs, targets) = TINY.network(), TINY.batch()
    mask = random_mask(model, 0.3)
    best = CONTESTANTS["b"].build(model, mask, inputs, targets)
    assert all(word in ("float32", "bfloat16", "contiguous", "channels last") for word in best.about.split(", ")) or (
        best.about.startswith("training ") and "; inference " in best.about
    )
    expected = CONTESTANTS["a"].build(model, mask, inputs, targets).infer()
    assert float((best.infer() - expected).abs().max() / expected.abs().max()) < 0.05


def test_contestants_take_turns():
    calls = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in "xyz"}, 3)
    assert "".join(calls) == "xyz" + "xxyyzz" * 3  # a round does not count, nor the first call of a turn
    assert {name: len(found) for name, found in times.items()} == {"x": 3, "y": 3, "z": 3}


def test_work_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    mask = {"1.weight": torch.zeros(3, 12, dtype=torch.bool)}
    mask["1.weight"][:, :5] = True
    x = torch.randn(6, 3, 2, 2)
    kept, dense = (work(model, mask, x, dense=dense) for dense in (False, True))
    # Forward and to the weights; the input has no gradient.
    assert kept.macs == 2 * 15 * 6 and dense.macs == 2 * 36 * 6
    assert dense.bytes == 4 * (6 * (3 * 12 + 2 * 3) + 8 * (36 + 3))
    assert kept.bytes == 4 * (6 * (3 * 12 + 2 * 3) + 8 * (15 + 3))  # the images are whole


def test_the_roof_is_the_slower_of_computing_and_moving():
    assert Work(macs=10**9, bytes=10**7).seconds(MACHINE) == 1
    assert Work(macs=10**8, bytes=10**8).seconds(MACHINE) == 1
    fast = Machine(float32=1e9, bfloat16=8e9, bandwidth=1e8)
    assert Work(macs=8 * 10**9, bytes=10**7, bfloat16=True).seconds(fast) == 1
    slow = Machine(float32=1e9, bfloat16=1e7, bandwidth=1e8)  # a CPU without the unit computes in float32
    assert Work(macs=10**9, bytes=10**7, bfloat16=True).seconds(slow) == 1


@pytest.fixture(scope="module")
def result():
    CONTESTANTS["x"] = replace(CONTESTANTS["d"], package="no_such_package")
    try:
        mask = random_mask(convnet(), 0.3)
        return bench(TINY, {"mine": mask}, baselines=("a", "x"), repeat=2, memory=False, machine=MACHINE)
    finally:
        del CONTESTANTS["x"]


def test_a_benchmark_of_everything(result):
    (found,) = json.loads(json.dumps(result))["masks"]
    assert found["name"] == "mine" and found["total"] == 3 * 8 * 9 + 8 * 16 * 9 + 160
    ours, dense, missing = (found["contestants"][key] for key in ("ours", "a", "x"))
    assert "no_such" not in missing["missing"] and "pip install" in missing["missing"]
    assert ours["difference"] < 1e-4 and dense["difference"] == 0
    assert len(ours["train_ms"]) == len(dense["infer_ms"]) == 2
    assert sum(ours["state"].values()) < sum(dense["state"].values())
    assert found["work"]["kept"]["macs"] < found["work"]["dense"]["macs"]
    assert found["work"]["kept16"]["macs"] == found["work"]["kept"]["macs"]
    assert found["work"]["kept16"]["bytes"] < found["work"]["kept"]["bytes"]
    assert result["where"]["threads"] == torch.get_num_threads()


def test_the_table_says_who_was_not_there_and_no_goals_of_ours(result):
    shown = table(result)
    for part in ("masked dense float32", "x: not installed: pip install", "state MB", "roofline:", "differs by"):
        assert part in shown
    assert "torch " + result["where"]["versions"]["torch"] in shown
    assert "goal" not in shown and "goals" not in result["masks"][0]


def test_the_roofline_is_drawn(result, tmp_path):
    plot_roofline(result, tmp_path / "roof.png")
    assert imread(tmp_path / "roof.png").std() > 0.05


def test_peak_memory_holds_weights_gradients_and_momentum(tmp_path):
    setting = Setting(model="vgg11-cifar", batch_size=2)
    mask = setting.mask(0.1, "random")
    mask.save(tmp_path / "m.safetensors")
    found = peak_memory(setting, tmp_path / "m.safetensors", "a", 1)
    if found is None:
        pytest.skip("this system does not tell")
    assert found["built"] > 4 * mask.total and found["peak"] > 3 * 4 * mask.total
    with pytest.raises(ValueError, match=r"memory of a failed.*--no-memory"):
        peak_memory(setting, tmp_path / "other.safetensors", "a", 1)


def test_mistakes_are_named():
    mask = random_mask(convnet(), 0.3)
    with pytest.raises(ValueError, match="unknown baseline 'q'"):
        bench(TINY, {"mine": mask}, baselines=("q",))
    with pytest.raises(ValueError, match="at least one repeat and one mask"):
        bench(TINY, {"mine": mask}, repeat=0)
    with pytest.raises(ValueError, match="belongs to another model"):
        bench(TINY, {"mine": Mask({"other": torch.ones(2, 2)})})

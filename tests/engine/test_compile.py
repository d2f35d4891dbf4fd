"""`skeletal.compile` against the masked network it stands for, in float64: training, states, copies, processes."""

import copy
import json
import multiprocessing
import os
import pickle
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional as F

import skeletal
from skeletal.engine import autotune
from skeletal.engine.modules.layers import Sparse
from tests.cases import Residual, Tokens, convnet, images, mlp, random_mask, tokens

DENSITY = 0.2


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Wide(nn.Module):
    """Residual, strided, depthwise and concatenated parts, all with batch norm, and an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        x = self.down(x)
        x = torch.cat([x, torch.relu(self.norm(self.depthwise(x)))], 1)
        return self.head(self.pool(x).mean((2, 3)))


def case(make=Wide, density=DENSITY, seed=0):
    torch.manual_seed(seed)
    model = make().double()
    mask = skeletal.Mask(random_mask(model, density, seed=seed))
    batches = [(x.double(), y) for x, y in images(4, seed=seed)]
    return model, mask, batches


def train(model, batches, optimizer):
    model.train()
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)


@pytest.mark.parametrize("path", ["sparse", "dense", "auto"])
@pytest.mark.parametrize("make", [Wide, convnet, mlp, Residual], ids=lambda make: make.__name__)
@pytest.mark.parametrize("optimizer", [sgd, adamw], ids=lambda optimizer: optimizer.__name__)
def test_trains_as_the_masked_network(make, path, optimizer):
    model, mask, batches = case(make)
    if make is Residual:
        model.dropout.p = 0.0
    fast = skeletal.compile(model, mask, batches[0], path=path)
    slow = copy.deepcopy(model)
    with mask.attach(slow):
        expected = train(slow, batches, optimizer(slow))
    assert train(fast, batches, optimizer(fast)) == pytest.approx(expected, rel=1e-9)
    mask.check(fast)
    dense = fast.to_dense()
    mask.check(dense)
    for mode in (True, False):
        slow.train(mode), fast.train(mode), dense.train(mode)
        with torch.no_grad():
            outputs = [copy.deepcopy(network)(batches[0][0]) for network in (slow, fast, dense)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-7, atol=1e-10)  # Adam divides by small numbers
        torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-7, atol=1e-10)


def test_only_kept_values_are_parameters():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse")
    named = dict(fast.named_parameters())
    assert set(named) <= {name for name, _ in model.named_parameters()}
    for name, keep in mask.items():
        assert named[name].dim() == 1
        assert len(named[name]) <= int(keep.sum())
    optimizer = sgd(fast)
    train(fast, batches, optimizer)
    for state in optimizer.state.values():
        assert state["momentum_buffer"].numel() <= max(mask.kept, 24)


def test_the_model_is_left_alone():
    model, mask, batches = case()
    before = copy.deepcopy(model.state_dict())
    fast = skeletal.compile(model, mask, batches[0])
    train(fast, batches, sgd(fast))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_states_are_the_users_own_both_ways():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse")
    train(fast, batches, sgd(fast))
    state = fast.state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    user = Wide().double()
    user.load_state_dict(state)
    mask.check(user)
    other = skeletal.compile(model, mask, batches[0], path="dense")
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    other.eval(), user.eval()
    torch.testing.assert_close(other(batches[0][0]), user(batches[0][0]))


def test_writing_into_any_state_counts():
    """Into one of two, after the network was used, again and again; and loading comes after writing."""
    model, mask, batches = case()
    x = batches[0][0]
    fast = skeletal.compile(model, mask, x, path="sparse").eval()
    mask.attach(model.eval())
    for network in (fast, model):
        first, second = network.state_dict(), network.state_dict()
        for step in range(3):
            first["head.bias"].fill_(step)
            second["head.weight"].mul_(2)
            network(x)
        second["stem.1.bias"].add_(1)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        first["head.bias"].fill_(9)
        assert (network.state_dict()["head.bias"] == 9).all()
        first["head.bias"].fill_(10)
        network.load_state_dict(before)
    torch.testing.assert_close(fast(x), model(x))
    torch.testing.assert_close(fast.state_dict(), model.state_dict())
    del first, second
    assert not fast.handed.any


def test_averages_that_fetch_their_state_once_keep_moving():
    model, mask, batches = case()
    x, outputs = batches[0][0], []
    fast = skeletal.compile(model, mask, x, path="sparse").eval()
    mask.attach(model.eval())
    for network in (fast, model):
        average = copy.deepcopy(network)
        state = average.state_dict()
        for _ in range(3):
            with torch.no_grad():
                for weight in network.parameters():
                    weight.mul_(1.1)
                for name, value in network.state_dict().items():
                    if value.is_floating_point():
                        state[name].mul_(0.5).add_(0.5 * value)
                outputs.append(average(x))
    torch.testing.assert_close(outputs[:3], outputs[3:])


def test_within_a_larger_module():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse")
    outer = nn.Sequential(fast, nn.Linear(10, 2).double())
    state = outer.state_dict()
    assert {name for name in state if name.startswith("0.")} == {f"0.{name}" for name in model.state_dict()}
    train(outer, [(x, y % 2) for x, y in batches], sgd(outer))
    outer.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in outer.state_dict().items())


def test_a_state_that_does_not_fit_is_refused():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse")
    state = fast.state_dict()
    missing = {name: value for name, value in state.items() if name != "head.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*head.weight"):
        fast.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*stranger"):
        fast.load_state_dict({**state, "stranger": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.weight"):
        fast.load_state_dict({**state, "head.weight": torch.zeros(3, 3)})


def test_copies_and_pickles():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse")
    train(fast, batches, sgd(fast))
    twin, pickled = copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))
    before = fast.state_dict()
    losses = [train(network, batches, sgd(network)) for network in (twin, pickled)]
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    assert losses[0] == losses[1] == train(fast, batches, sgd(fast))
    assert losses[0][-1] != losses[0][0]
    assert {layer.path for layer in pickled.sparse_layers().values()} == {"sparse"}


def test_shared_memory_is_not_copied_in_silence():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse").share_memory()
    with pytest.raises(RuntimeError, match="gets a copy of a compiled network, not the memory that it shares"):
        multiprocessing.get_context("spawn").Process(target=print, args=(fast,)).start()
    assert torch.equal(pickle.loads(pickle.dumps(fast))(batches[0][0]), fast(batches[0][0]))  # meant to be a copy


def test_a_wrapped_network_without_a_mask():
    model = mlp()
    fast = skeletal.compile(torch.optim.swa_utils.AveragedModel(model), None, images()[0], path="sparse")
    assert torch.allclose(fast(images()[0][0]), model(images()[0][0]), atol=1e-6)


def test_a_mask_may_name_a_tied_weight_by_any_of_its_names():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).double(), torch.randn(5, 8).double()
    model[2].weight = model[0].weight
    mask = skeletal.Mask({"2.weight": torch.rand(8, 8) < 0.5})
    fast = skeletal.compile(model, mask, x, path="sparse")
    masked = copy.deepcopy(model)
    mask.attach(masked)
    for network in (fast, masked):
        network(x).square().sum().backward()
    assert torch.allclose(fast(x), masked(x))
    assert torch.allclose(fast.get_parameter("0.weight").grad, masked[0].weight.grad)
    mask.check(fast.to_dense())


def test_what_was_frozen_after_compiling_stays_so():
    """In pickles and dense networks, while channels that could still be trained are not removed."""
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse")
    shapes = {name: weight.shape for name, weight in fast.named_parameters()}
    small = skeletal.compact(model, mask, batches[0])
    for network in (fast, small.model):
        network.get_submodule("one.1").eval().requires_grad_(False)
        network.get_submodule("head").requires_grad_(False)
    frozen = {"one.1.weight", "one.1.bias", "head.weight", "head.bias"}
    again = pickle.loads(pickle.dumps(fast))
    assert {name: weight.shape for name, weight in again.named_parameters()} == shapes
    for network in (again, copy.deepcopy(fast), fast.to_dense(), small.to_dense(), again.to_dense()):
        assert {name for name, weight in network.named_parameters() if not weight.requires_grad} == frozen
        assert network.training and not network.get_submodule("one.1").training
    losses = [train(network.eval(), batches, sgd(network)) for network in (fast, again)]
    assert losses[0] == losses[1]
    again.requires_grad_(True)
    assert all(weight.requires_grad for weight in pickle.loads(pickle.dumps(again)).parameters())


def test_other_batch_and_image_sizes():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse").train()
    slow = fast.to_dense().train()
    for examples, size in [(1, 8), (5, 8), (17, 8), (33, 12), (2, 7)]:
        x = torch.randn(examples, 3, size, size, dtype=torch.float64)
        torch.testing.assert_close(fast(x), slow(x), rtol=1e-9, atol=1e-9)


def test_switching_the_path():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse").eval()
    expected = fast(batches[0][0])
    parameters = dict(fast.named_parameters())
    for path in ("dense", "sparse", "auto"):
        fast.use(path)
        torch.testing.assert_close(fast(batches[0][0]), expected)
        assert all(parameter is parameters[name] for name, parameter in fast.named_parameters())
    with pytest.raises(ValueError, match="sparse"):
        fast.use("spare")


def test_report_names_every_layer_and_the_choice():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0])
    report = fast.report
    assert {layer.name for layer in report.layers} == set(fast.sparse_layers())
    assert report.chosen == min(report.steps, key=report.steps.__getitem__)
    assert all(layer.sparse > 0 and layer.dense > 0 for layer in report.layers)
    assert all(layer.name in str(report) for layer in report.layers)


def test_a_choice_is_remembered_for_the_same_shapes(monkeypatch):
    model, mask, batches = case()
    first = skeletal.compile(model, mask, batches[0])
    monkeypatch.setattr(autotune, "step_ms", lambda *_: pytest.fail("measured again"))
    assert skeletal.compile(model, mask, batches[0]).report == first.report
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        skeletal.compile(model, mask, (batches[0][0][:3], None))


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"chosen": 3})])
def test_a_damaged_memory_is_measured_anew(content, tmp_path):
    model, mask, batches = case()
    skeletal.compile(model, mask, batches[0])
    (file,) = (tmp_path / "cache" / "skeletal").iterdir()
    file.write_text(content)
    assert skeletal.compile(model, mask, batches[0]).report.steps


def test_what_cannot_be_traced_keeps_its_own_forward_pass():
    model = Tokens(tie=True).double()
    model.mixer.dropout.p = model.mixer.dropout1.p = model.mixer.dropout2.p = model.mixer.self_attn.dropout = 0.0
    mask = skeletal.Mask(random_mask(model, 0.3))
    batch = tokens(1)[0]
    fast = skeletal.compile(model, mask, batch, path="sparse").train()
    slow = copy.deepcopy(model).train()
    optimizers = sgd(fast), sgd(slow)
    with mask.attach(slow):
        for _ in range(3):
            losses = []
            for network, optimizer in zip((fast, slow), optimizers, strict=True):
                optimizer.zero_grad()
                loss = network(**batch)["loss"]
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    mask.check(fast)
    assert any(isinstance(module, Sparse) for module in fast.modules())
    twin = copy.deepcopy(fast)
    twin(**batch)["loss"].backward()
    sgd(twin).step()
    mask.check(twin)


def test_under_autocast():
    model, mask, batches = case()
    fast = skeletal.compile(model.float(), mask, batches[0][0].float(), path="sparse").train()
    with torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(fast(batches[0][0].float()), batches[0][1]).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fast.parameters())
    assert dict(fast.named_parameters())["head.weight"].grad.abs().sum() > 0


def test_half_precision_runs_dense():
    model, mask, batches = case()
    fast = skeletal.compile(model, mask, batches[0], path="sparse").to(torch.bfloat16)
    assert {layer.path for layer in fast.sparse_layers().values()} == {"dense"}
    assert fast(batches[0][0].bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="bfloat16"):
        fast.use("sparse")


def test_a_mask_of_another_model_is_refused():
    model, _, batches = case()
    with pytest.raises(skeletal.MaskError):
        skeletal.compile(model, random_mask(mlp(), 0.3), batches[0])


def in_process(rank, file, queue):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    model, mask, batches = case(mlp)
    fast = nn.parallel.DistributedDataParallel(skeletal.compile(model, mask, batches[0], path="sparse"))
    train(fast, [(x[6 * rank : 6 * rank + 6], y[6 * rank : 6 * rank + 6]) for x, y in batches], sgd(fast))
    mask.check(fast)
    if rank == 0:
        torch.save(fast.module.state_dict(), queue)
    dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    start_processes(in_process, (str(tmp_path / "meet"), str(tmp_path / "state")), 2, start_method="spawn")
    model, mask, batches = case(mlp)
    fast = skeletal.compile(model, mask, batches[0], path="sparse")
    train(fast, batches, sgd(fast))
    found = torch.load(tmp_path / "state", weights_only=True)
    for name, value in fast.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_an_exporter_is_told_what_to_export_instead():
    model, batch = convnet(), images()[0]
    fast = skeletal.compile(model, random_mask(model, DENSITY), batch, path="sparse").eval()
    inputs = batch[0]
    with pytest.raises(RuntimeError, match=r"skeletal\.compact\(fast\.to_dense\(\), fast\.mask, example\)\.model"):
        torch.export.export(fast, (inputs,))
    small = skeletal.compact(fast.to_dense().eval(), fast.mask, batch).model
    with torch.no_grad():
        torch.testing.assert_close(small(inputs), fast(inputs), atol=1e-4, rtol=1e-4)


def test_functional_call_finds_parameters_under_the_original_names():
    model, batch = convnet(), images()[0]
    fast = skeletal.compile(model, random_mask(model, DENSITY), batch, path="sparse").eval()
    zeros = {name: torch.zeros_like(value) for name, value in fast.named_parameters()}
    inputs = batch[0]
    with torch.no_grad():
        assert fast(inputs).any() and not torch.func.functional_call(fast, zeros, (inputs,)).any()
        assert fast(inputs).any()
    assert not hasattr(fast, "nothing_of_that_name")


def test_compiling_says_what_takes_its_time(capsys, monkeypatch):
    monkeypatch.setattr("skeletal.core.progress.FIRST", 0)
    model, batch = convnet(), images()[0]
    mask = random_mask(model, DENSITY)
    skeletal.compile(model, mask, batch)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"] + "-new")
    skeletal.compile(model, mask, batch, progress=True)
    assert "compiling kernels and measuring what is fastest, once" in capsys.readouterr().err

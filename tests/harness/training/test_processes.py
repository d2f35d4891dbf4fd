"""Two gloo processes, each with its part of every batch, against one process with whole batches."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.model import distributed
from skeletal.harness.config import Pruning, Setup
from skeletal.harness.data.placing import shared
from skeletal.harness.ledger import COUNTS, Ledger
from skeletal.harness.runs import experiment, finding, load, review
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.engines import engine_for_all
from skeletal.harness.training.evaluate import evaluate
from skeletal.harness.training.processes import Team, group, launched, launcher
from tests.harness.training.digits import TRAINING, data, net, trained
from tests.ranks import in_ranks, outcome

SETUP = Setup(device="cpu")
EVEN = replace(TRAINING, batch_size=27)  # no rank is without an example in the last batch
PRUNING = Pruning(
    method="force", density=0.2, steps=3, batches_per_step=2, prune_batch_size=33, loss="cross-entropy",
    average="signed", bn_mode="train", sampling="plain",
)  # fmt: skip


def run(root, training=TRAINING, pruning=PRUNING):
    for module in (finding, experiment, review, load):
        module.load_data, module.create_model = data, net
    return experiment.run(SETUP, pruning, training, root=Path(root), progress=False)


def evaluated(path):
    scores = review.evaluate_run(path, device="cpu")
    return scores.loss, scores.top1, scores.examples


def interrupted(model, at):
    """The model, which asks this process to stop in the `at`-th forward pass."""
    calls = []

    def count(*_):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)

    model.register_forward_pre_hook(count)
    return model


def half_of(model):
    mask = skeletal.Mask(
        {n: torch.arange(p.numel()).view_as(p) % 2 == 0 for n, p in model.named_parameters() if p.dim() > 1}
    )
    return mask


def moved(engine):
    """Weights after a training whose mask moves once, in the step for which rank 1 has no example."""
    update = dict(update="rigl", update_every=5, update_fraction=0.5, update_end=1.0)
    model, _ = trained(mask=half_of(net()), training=replace(TRAINING, engine=engine, epochs=2, lr=0.01, **update))
    return dict(model.state_dict())


class SkipsByChance(nn.Module):
    """In the first of every four steps nobody has a gradient of the skipped layer; then both have, then one alone."""

    def __init__(self, rank):
        super().__init__()
        self.rank = rank
        torch.manual_seed(0)
        self.first, self.skipped, self.last = nn.Linear(64, 24), nn.Linear(24, 24), nn.Linear(24, 10)
        self.calls = 0

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        self.calls += self.training
        if not self.training or self.calls % 4 in (2, 0 if self.rank else 3):
            x = x + self.skipped(x).relu()
        return self.last(x)


def work(rank, folder):
    found = {}
    place, result = run(f"{folder}/two")
    found["run"] = result, str(place.path)
    found["again"] = run(f"{folder}/two")[1] == result
    found["evaluated"] = evaluated(place.path)
    found["launcher"] = launcher()
    best = finding.find_mask(net(), data(), SETUP, replace(PRUNING, best_of=2), progress=False)
    found["best of"] = dict(best), best.metadata["best_of"]

    # Only rank 1 is asked to stop, in the middle of an epoch; both do, and go on from there.
    found["stopped"] = outcome(lambda: trained(f"{folder}/cut", interrupted(net(), 7 if rank == 1 else 0)))
    found["resumed"] = dict(trained(f"{folder}/cut")[0].state_dict())
    found["straight"] = dict(trained(f"{folder}/straight")[0].state_dict())

    torch.manual_seed(1)
    with_norm = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 10)
    )
    found["norm"] = dict(trained(model=with_norm, training=EVEN)[0].state_dict())

    mask = half_of(net())
    model, result = trained(mask=mask, training=replace(TRAINING, engine="auto"))
    mask.check(model)
    found["auto"] = dict(model.state_dict()), result.engine, result.test.loss
    sparse, result = trained(mask=mask, training=replace(TRAINING, engine="sparse", epochs=1))
    found["sparse"] = dict(sparse.state_dict()), result.engine
    found["moved"] = {engine: moved(engine) for engine in ("dense", "sparse")}
    engine = engine_for_all(
        net(), mask, "auto", device=torch.device("cpu"), example=lambda: torch.randn(4 + rank, 1, 8, 8)
    )
    found["choice"] = engine.choice

    for name, alone in (("one skips", rank), ("all skip", 0)):
        found[name] = dict(trained(model=SkipsByChance(alone), training=EVEN)[0].state_dict())

    model = net()
    model(torch.ones(2 + rank, 1, 8, 8)).sum().backward()
    team = Team(model, torch.device("cpu"))
    mask.attach(model)
    told = team.meet(torch.tensor(float(rank)), 2 + rank, stopping=rank == 1)
    team.average_gradients(2 + rank, told)
    found["met"] = told.loss, told.examples, told.stopping
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    before = finding.load_data, finding.create_model
    try:
        folder, result = run(tmp_path_factory.mktemp("one"))
        return folder.path, result, evaluated(folder.path)
    finally:
        for module in (finding, experiment, review, load):
            module.load_data, module.create_model = before


def counts(cost):
    return {name: cost[name] for name in COUNTS}


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_run_on_two_ranks_is_the_run_of_one_process(found, single):
    path, result, _ = single
    two = Path(found[0]["run"][1])
    assert two.name == path.name  # the number of processes is no part of a run's identity
    assert skeletal.Mask.load(two / "mask.safetensors") == skeletal.Mask.load(path / "mask.safetensors")
    assert skeletal.Mask.load(two / "mask.safetensors").metadata["ranks"] == 2
    from safetensors.torch import load_file

    weights, expected = load_file(two / "model.safetensors"), load_file(path / "model.safetensors")
    close(weights, expected)
    assert any((value - net().state_dict()[name]).abs().max() > 0.01 for name, value in expected.items())  # it trained
    rows, expected = RunFolder.at(two).metrics(), RunFolder.at(path).metrics()
    assert len(rows) == 3
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds"}:
            assert row[name] == (pytest.approx(other[name], rel=1e-4) if isinstance(row[name], float) else other[name])
    assert result["train"]["examples"] == 81 and rows[-1]["test_examples"] == 31
    for part, cost in Ledger.read(found[0]["run"][0]["cost"]).record().items():  # examples count globally
        assert counts(cost) == counts(result["cost"][part]) and cost["examples"] > 0 and cost["peak_memory"] > 0
    assert result["cost"]["finding"]["examples"] == 3 * 2 * 33 and result["cost"]["training"]["examples"] == 3 * 81


def test_all_ranks_return_the_same_and_a_finished_run_is_not_repeated(found):
    assert found[0]["run"][1] == found[1]["run"][1]
    assert found[0]["again"] and found[1]["again"] is not None
    timeless = [{k: v for k, v in rank["run"][0].items() if "seconds" not in k} for rank in found]
    assert timeless[0] == timeless[1]


def test_ranks_agree_on_the_best_of_two_masks(found):
    (best, told), (same, told_too) = (rank["best of"] for rank in found)
    best = skeletal.Mask(best)
    assert best == skeletal.Mask(same) and told == told_too and len(told["losses"]) == 2
    assert (best == skeletal.Mask.load(Path(found[0]["run"][1]) / "mask.safetensors")) == (told["chosen"] == 0)


def test_evaluation_counts_every_example_once(found, single):
    for rank in (0, 1):
        loss, top1, examples = found[rank]["evaluated"]
        assert (pytest.approx(loss), top1, examples) == (single[2][0], pytest.approx(single[2][1]), 31)


def test_the_environment_tells_the_rule(found):
    text = (Path(found[0]["run"][1]) / "environment.json").read_text()
    assert '"number": 2' in text and "not scaled" in text
    assert found[0]["launcher"] == "torchrun --nproc-per-node 2 -m skeletal "


def test_a_run_stopped_on_one_rank_stops_on_all_and_resumes_to_the_same_bits(found):
    for rank in (0, 1):
        kind, message, _ = found[rank]["stopped"]
        assert kind == "Interrupted" and "stopped after epoch 1 of 3 and step 2 of 5" in message
        for name, value in found[rank]["straight"].items():
            assert torch.equal(value, found[rank]["resumed"][name])
            assert torch.equal(value, found[0]["straight"][name])


def test_ranks_of_a_network_with_norm_and_dropout_stay_equal(found):
    for name, value in found[0]["norm"].items():
        assert torch.equal(value, found[1]["norm"][name]), name


def test_ranks_stay_equal_where_a_layer_is_skipped(found):
    close(found[0]["one skips"], found[1]["one skips"])
    # Nor does momentum move it when all ranks skip it.
    close(found[0]["all skip"], dict(trained(model=SkipsByChance(0), training=EVEN)[0].state_dict()))


def test_the_engine_is_chosen_by_one_for_all(found):
    (weights, engine, loss), other = found[0]["auto"], found[1]["auto"]
    assert engine.startswith("auto: ") and other[1:] == (engine, loss)
    assert found[0]["choice"] == found[1]["choice"] and found[0]["choice"]["asked"] == "auto"
    model = net()
    mask = half_of(model)
    expected, _ = trained(model=model, mask=mask)
    close(weights, dict(expected.state_dict()))


def test_a_compiled_network_is_trained_on_two_ranks_too(found):
    model = net()
    expected, _ = trained(model=model, mask=half_of(model), training=replace(TRAINING, engine="sparse", epochs=1))
    for rank in (0, 1):
        weights, engine = found[rank]["sparse"]
        assert engine == "sparse"
        close(weights, dict(expected.state_dict()))


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_mask_moves_on_two_ranks_as_on_one(found, engine):
    expected, before = moved(engine), half_of(net())
    for rank in (0, 1):
        weights = found[rank]["moved"][engine]
        close(weights, expected)
        assert all(torch.equal(weights[name] != 0, expected[name] != 0) for name in before)
        assert any((weights[name].ne(0) & ~keep).any() for name, keep in before.items())


def test_what_ranks_tell_each_other(found):
    for rank in (0, 1):
        assert found[rank]["met"] == (pytest.approx(3 / 5), 5, True)


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some schedulers set it, without a launcher
    assert launched() == 1 and launcher() == "skeletal "
    with group():
        assert distributed.ranks() == 1 and distributed.on_first(lambda: 3) == 3
    split = data().test
    assert shared(split) is split
    assert evaluate(net(), split.batches(7, train=False), device="cpu", shared=True).examples == 31

"""Extrapolation against clocks that run as they should; and a real estimate against the run."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs import estimate as estimating
from skeletal.harness.runs import experiment

SETUP = Setup(device="cpu")
PRUNING = resolve(Pruning(method="force", density=0.2, steps=6, batches_per_step=2), "quick")
TRAINING = resolve(Training(epochs=3, batch_size=256, lr=0.01, engine="dense", test_every=2), "quick")


def net(*_, **__):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


@pytest.mark.parametrize("steps", [1, 2, 3, 60])
@pytest.mark.parametrize("batches", [1, 2, 40])
def test_pruning_is_extrapolated_in_steps_and_batches(monkeypatch, steps, batches):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: clock.now)
    run = []

    def find_mask(model, data, setup, pruning, *, progress, on_step):
        run.append((pruning.steps, pruning.batches_per_step))
        assert pruning.on_collapse == "keep" and not progress
        clock.now += 0.5  # to look at the model
        for _ in range(pruning.steps):
            clock.now += 0.25 + 2 * pruning.batches_per_step
            on_step(None)
        clock.now += 1.5  # to look for a path
        return "mask"

    monkeypatch.setattr(estimating, "find_mask", find_mask)
    pruning = replace(PRUNING, steps=steps, batches_per_step=batches)
    mask, seconds = estimating._pruning(None, None, SETUP, pruning)
    assert mask == "mask" and seconds == pytest.approx(0.5 + steps * (0.25 + 2 * batches) + 1.5)
    assert max(run) <= (3, 2)


def test_pruning_that_takes_a_moment_is_done_whole(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: clock.now)

    def find_mask(model, data, setup, pruning, *, progress, on_step):
        for step in range(pruning.steps):
            clock.now += 0.04 if step < 3 else 0.01  # the first ones warm up
            on_step(None)
        return pruning.steps

    monkeypatch.setattr(estimating, "find_mask", find_mask)
    pruning = replace(PRUNING, steps=60, batches_per_step=1)
    assert estimating._pruning(None, None, SETUP, pruning) == (60, pytest.approx(3 * 0.04 + 57 * 0.01))


@pytest.mark.parametrize("steps, step", [(1, 0.5), (5, 0.1), (100, 0.2), (5004, 1.7), (40, 60.0)])
def test_an_epoch_is_extrapolated_from_two_parts_of_it(steps, step):
    run = []

    def first_steps(count):
        run.append(count)
        return 4.0 + count * step  # what an epoch takes to begin

    whole, of_a_step = estimating.epoch_seconds(first_steps, steps)
    assert whole == pytest.approx(4 + steps * step)
    if len(run) > 2:  # not as a whole
        assert of_a_step == pytest.approx(step)
        assert max(run) <= max(3, 6 / step + 3)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    before = experiment.create_model
    experiment.create_model = net
    try:
        found = estimating.estimate(SETUP, PRUNING, TRAINING)
        return found, *experiment.run(SETUP, PRUNING, TRAINING, root=tmp_path_factory.mktemp("runs"), progress=False)
    finally:
        experiment.create_model = before


def test_disk_is_that_of_the_run(both):
    found, folder, _ = both
    disk = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    assert found.disk == pytest.approx(disk, rel=0.1)


def test_seconds_and_memory_are_of_the_right_kind(both):
    found, _, result = both
    assert found.steps_per_epoch == 6 and found.engine == result["engine"] == "dense" and found.device == "cpu"
    assert 0 < found.prune_seconds < 100 * result["prune_seconds"]  # no test asserts a timing
    assert 0 < found.step_seconds < found.train_seconds < 100 * result["seconds"]
    assert 2**24 < found.memory < 2**40
    assert asdict(found)["assumed"][0] == "this machine stays as busy as it was in these seconds"


def test_the_dense_network_has_no_mask_to_find(monkeypatch):
    monkeypatch.setattr(experiment, "create_model", net)
    found = estimating.estimate(SETUP, replace(PRUNING, method="dense"), replace(TRAINING, epochs=1))
    assert found.prune_seconds == 0 and len(found.assumed) == 1


def test_assumptions():
    said = "; ".join(estimating._assumptions(replace(PRUNING, scoring_engine="sparse"), TRAINING, True, True))
    assert "every pruning step costs" in said and "scoring stays dense" in said
    assert "as on one found in 3 steps" in said and "as long to decode" in said
    assert len(list(estimating._assumptions(replace(PRUNING, method="snip", steps=1), TRAINING, False, False))) == 1


@pytest.mark.parametrize("update", ["set", "rigl", "gradual"])
def test_a_mask_that_moves(monkeypatch, update):
    monkeypatch.setattr(experiment, "create_model", net)
    density = 0.1 if update == "gradual" else None
    moving = replace(TRAINING, epochs=1, update=update, update_every=2, update_density=density)
    found = estimating.estimate(SETUP, replace(PRUNING, steps=1, batches_per_step=1), resolve(moving, "quick"))
    assert found.train_seconds > 0 and f"to move the mask (--update {update}) takes no time" in found.assumed


def test_the_best_of_several_masks_takes_as_many_times_as_long_and_the_comparison(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: clock.now)

    def find_mask(model, data, setup, pruning, *, progress, on_step):
        assert pruning.best_of == 1
        for _ in range(pruning.steps):
            clock.now += 2.0
            on_step(None)
        return "mask"

    monkeypatch.setattr(estimating, "find_mask", find_mask)
    pruning = replace(PRUNING, steps=60, batches_per_step=1, best_of=3)
    assert estimating._pruning(None, None, SETUP, pruning) == ("mask", pytest.approx(3 * 60 * 2.0 + 3 * 50 * 2.0))
    assert "to compare 3 masks" in "; ".join(estimating._assumptions(pruning, TRAINING, False, False))


def test_iterative_magnitude_pruning_is_several_trainings():
    with pytest.raises(ValueError, match="imp is 4 trainings and one more: estimate one"):
        estimating.estimate(SETUP, replace(PRUNING, method="imp", steps=4), TRAINING)


def test_what_a_run_refuses_is_refused():
    moving = resolve(replace(TRAINING, update="rigl", update_every=1000), "quick")
    with pytest.raises(ValueError, match="never moves in 18"):
        estimating.estimate(SETUP, PRUNING, moving)

"""Several runs that take turns: on a CPU each ends in the bits it has alone, and no run stops another."""

import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from skeletal.core.errors import NonFiniteError
from skeletal.core.model.state.random_state import beside_torch
from skeletal.harness.console.interrupt import Interrupted
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training import checkpoint
from skeletal.harness.training.several import train_many
from skeletal.harness.training.task import Task
from skeletal.harness.training.train import TrainResult
from tests.harness.training.blobs import PyDrop, same, timeless
from tests.harness.training.recorded import DATA, TRAINING, mask_of, network, run, static

__all__ = ["static"]
CPU = torch.device("cpu")


class Signals(nn.Identity):
    """Interrupts the process in one of its training steps."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def forward(self, x):
        self.left -= self.training
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return x


class Poisoned(nn.Module):
    def forward(self, x):
        return x * torch.nan


def task(place, seed, model=None, **changes):
    training = replace(TRAINING, epochs=2 + seed % 2, **changes)
    about = {"data": DATA, "device": CPU, "mask": mask_of(network()), "folder": place, "seed": seed}
    return Task(model=model or network(), training=training, **about)


def places(root, name, count=3):
    return [RunFolder.open(root, f"{name}-{number}", {}) for number in range(count)]


@pytest.mark.parametrize("way", ["eager", "static"])
def test_every_run_is_what_it_is_alone(tmp_path, static, way):
    if way == "static":
        static()
    alone, beside = places(tmp_path, "alone"), places(tmp_path, "beside")
    expected = [
        run(replace(TRAINING, epochs=2 + seed % 2), folder=place, seed=seed) for seed, place in enumerate(alone)
    ]
    tasks = [task(place, seed) for seed, place in enumerate(beside)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    outcomes = dict(train_many(tasks))
    assert torch.equal(torch.get_rng_state(), before)
    for number, (one, other) in enumerate(zip(alone, beside, strict=True)):
        assert isinstance(outcomes[number], TrainResult)
        assert same(dict(expected[number].state_dict()), dict(tasks[number].model.state_dict()))
        assert timeless(one.metrics()) == timeless(other.metrics())
        a, b = checkpoint.load(one.path), checkpoint.load(other.path)
        assert all(same(a[part], b[part]) for part in ("model", "optimizer", "rng", "epoch"))
    assert not same(*(dict(model.state_dict()) for model in expected[:2]))  # seeds differ


def test_runs_that_draw_from_python_and_numpy_are_what_they_are_alone():
    expected = [run(replace(TRAINING, epochs=2), network().append(PyDrop()), seed=seed) for seed in range(2)]
    tasks = [
        replace(task(None, seed, network().append(PyDrop())), training=replace(TRAINING, epochs=2)) for seed in range(2)
    ]
    before = beside_torch()
    dict(train_many([*tasks, task(None, 2)]))
    assert beside_torch() == before
    for model, done in zip(expected, tasks, strict=True):
        assert same(dict(model.state_dict()), dict(done.model.state_dict()))


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    one, bad, other = places(tmp_path, "run")
    broken = network().append(Poisoned())
    outcomes = dict(train_many([task(one, 0), task(bad, 1, broken), task(other, 2, lr=None), task(None, 3)]))
    assert isinstance(outcomes[0], TrainResult) and isinstance(outcomes[3], TrainResult)
    assert isinstance(outcomes[1], NonFiniteError) and "step 1" in str(outcomes[1])
    assert isinstance(outcomes[2], ValueError) and "needs lr" in str(outcomes[2])


def test_an_interrupt_stops_all_and_all_go_on(tmp_path):
    expected = [run(replace(TRAINING, epochs=2 + seed % 2), seed=seed) for seed in range(3)]
    beside = places(tmp_path, "beside")
    models = [network(), network().append(Signals(4)), network()]
    with pytest.raises(Interrupted, match="stopped after epoch"):
        dict(train_many([task(place, seed, models[seed]) for seed, place in enumerate(beside)]))
    saved = [checkpoint.load(place.path) for place in beside]
    assert [(state["epoch"], state["batch"]) for state in saved] == [(1, 0), (0, 4), (0, 4)]  # the first took its turn
    models = [network(), network().append(Signals(4)), network()]  # whose count goes on at 0
    tasks = [task(place, seed, models[seed]) for seed, place in enumerate(beside)]
    assert len(dict(train_many(tasks))) == 3
    for model, done in zip(expected, tasks, strict=True):
        assert same(dict(model.state_dict()), dict(done.model.state_dict()))


def test_a_device_for_all():
    with pytest.raises(ValueError, match="share a device"):
        dict(train_many([task(None, 0), replace(task(None, 1), device=torch.device("meta"))]))

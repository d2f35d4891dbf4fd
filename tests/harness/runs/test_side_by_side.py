"""Whole runs side by side: each has the folder and the result it has alone."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from skeletal.core.errors import BusyError
from skeletal.harness.config import Pruning, resolve
from skeletal.harness.runs import experiment
from skeletal.harness.runs.side_by_side import Settings, run_many
from tests.harness.runs.test_experiment import RANDOM, TRAINING
from tests.harness.runs.test_finding import SETUP
from tests.harness.training.blobs import same
from tests.timeless import timeless

SETTINGS = [
    Settings(SETUP, RANDOM, TRAINING),
    Settings(replace(SETUP, seed=1), RANDOM, TRAINING, name="mine"),
    Settings(SETUP, resolve(Pruning(method="dense"), "quick"), TRAINING),
]


def folder_of(settings, root):
    return experiment.run_folder(settings.setup, settings.pruning, settings.training, root=root, name=settings.name)


def alone(settings, root):
    return experiment.run(
        settings.setup, settings.pruning, settings.training, root=root, name=settings.name, progress=False
    )[1]


def test_runs_side_by_side_leave_what_they_leave_alone(tmp_path):
    one, other = tmp_path / "alone", tmp_path / "beside"
    expected = [alone(settings, one) for settings in SETTINGS]
    taken = []
    outcomes = dict(run_many(SETTINGS, root=other, started=taken.append))
    assert taken == [0, 1, 2] and len(outcomes) == 3
    for number, settings in enumerate(SETTINGS):
        a, b = folder_of(settings, one), folder_of(settings, other)
        assert a.path.name == b.path.name and not b.running
        for result in (outcomes[number], b.result()):
            assert timeless(result) == timeless(expected[number])
        assert same(load_file(a.path / "model.safetensors"), load_file(b.path / "model.safetensors"))
        assert sorted(p.name for p in a.path.iterdir()) == sorted(p.name for p in b.path.iterdir())


def test_a_run_that_is_named_twice_is_done_once(tmp_path):
    same_run = replace(SETTINGS[0], training=replace(TRAINING, engine="dense"))  # computed otherwise, the same run
    outcomes = dict(run_many([SETTINGS[0], SETTINGS[1], same_run], root=tmp_path))
    assert isinstance(outcomes[2], ValueError) and "runs 0 and 2 are the same" in str(outcomes[2])
    folder = folder_of(SETTINGS[0], tmp_path)
    assert folder.result() == outcomes[0] and len(folder.metrics()) == TRAINING.epochs


def test_what_is_finished_busy_or_wrong_does_not_hold_up_the_rest(tmp_path):
    finished = alone(SETTINGS[0], tmp_path)
    wrong = Settings(SETUP, RANDOM, replace(TRAINING, lr=None), name="wrong")
    runs = [SETTINGS[0], wrong, SETTINGS[1], replace(SETTINGS[2], training=replace(TRAINING, lr=1e30), name="explodes")]
    taken = []
    outcomes = dict(run_many(runs, root=tmp_path, started=taken.append))
    assert outcomes[0]["test"] == finished["test"]
    assert isinstance(outcomes[1], ValueError) and "needs lr" in str(outcomes[1])
    assert folder_of(SETTINGS[1], tmp_path).result() == outcomes[2]
    assert "learning rate 1e+30" in str(outcomes[3])
    assert taken == [1, 2, 3] and not any(folder_of(run, tmp_path).running for run in runs)


def test_a_run_that_another_process_has_is_left_to_it(tmp_path, monkeypatch):
    def busy(self, *, wait=False):
        raise BusyError("taken")

    monkeypatch.setattr(type(folder_of(SETTINGS[0], tmp_path)), "claim", busy)
    outcomes = dict(run_many(SETTINGS[:1], root=tmp_path))
    assert isinstance(outcomes[0], BusyError)
    with pytest.raises(FileNotFoundError):
        folder_of(SETTINGS[0], tmp_path).result()

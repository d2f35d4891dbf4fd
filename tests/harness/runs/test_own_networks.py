"""Networks of the user's own, by `module:function`: what they keep in attributes."""

import sys
from dataclasses import asdict, replace

import pytest

from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs import experiment
from skeletal.harness.runs.load import load_run
from skeletal.harness.runs.review import evaluate_run

RANDOM = resolve(Pruning(method="random", density=0.3), "quick")
TRAINING = resolve(Training(epochs=1, batch_size=256, engine="dense"), "quick")
NETWORKS = """
from torch import nn

class Counts(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.n, self.layer = 0, nn.Linear(64, num_classes)

    def forward(self, x):
        self.n += self.training
        return self.layer(x.flatten(1)) * (1 + self.n)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_nets_xyz.py").write_text(NETWORKS)
    yield tmp_path
    sys.modules.pop("own_nets_xyz", None)


def setup(function):
    return Setup(model=f"own_nets_xyz:{function}", device="cpu")


def run(function, root, pruning=RANDOM, training=TRAINING):
    return experiment.run(setup(function), pruning, training, root=root, progress=False)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_what_a_network_counted_is_scored_and_read_back(here, engine):
    folder, result = run("Counts", here, training=replace(TRAINING, engine=engine))
    assert asdict(evaluate_run(folder.path)) == result["test"]
    assert load_run(folder.path).network.n == 6


def test_every_round_of_imp_counts_anew(here):
    imp = resolve(Pruning(method="imp", density=0.5, rewind_epochs=0), "quick")
    folder, _ = run("Counts", here, imp)
    assert load_run(folder.path).network.n == 6

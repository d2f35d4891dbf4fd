"""Networks of the user's own, by `module:function`: what they keep in attributes, and what is refused early."""

import sys
from dataclasses import asdict, replace

import pytest
import torch

from skeletal.harness import models
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs import experiment
from skeletal.harness.runs.finding import create_model, load_data
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

class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.norm, self.head = nn.LazyBatchNorm2d(), nn.LazyLinear(num_classes)

    def forward(self, x):
        return self.head(self.norm(x).flatten(1))

class Views(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(512, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).view(len(x), -1))

class Two(Views):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        outputs = super().forward(self.norm(x))
        return (outputs, outputs) if self.training else outputs

class Fours(Views):
    def forward(self, x):
        return super().forward(x.view(4, -1, *x.shape[1:]).flatten(0, 1) if self.training else x)
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


def test_lazy_layers_get_their_sizes_from_an_image_and_their_weights_from_the_seed(here):
    data = load_data(setup("Lazy"))
    one, two = (create_model(setup("Lazy"), data) for _ in range(2))
    assert one.head.weight.shape == (10, 64) and one.training
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, create_model(replace(setup("Lazy"), seed=1), data).head.weight)
    assert run("Lazy", here)[1]["kept"] == 192


def test_lazy_layers_that_cannot_compute_the_image_are_told_with_its_size(here):
    (here / "own_nets_xyz.py").write_text(NETWORKS.replace("nn.LazyBatchNorm2d()", "nn.LazyBatchNorm3d()"))
    with pytest.raises(ValueError, match=r"own_nets_xyz:Lazy has lazy layers and cannot compute .*\(1, 8, 8\)"):
        run("Lazy", here)


def test_a_network_that_cannot_compute_channels_last_is_refused_before_anything_is_found(here, monkeypatch):
    monkeypatch.setattr(experiment, "find_mask", lambda *_, **__: pytest.fail("looked for a mask"))
    with pytest.raises(ValueError, match=r"cannot compute channels-last \(view .*reshape instead of view"):
        run("Views", here, training=replace(TRAINING, channels_last=True))


def test_outputs_in_training_mode_are_looked_at_early_and_leave_no_trace(here):
    told = r"gives a tuple for two images in training mode, not logits \(2, 10\).*: give the logits alone"
    with pytest.raises(ValueError, match=told):
        run("Two", here)
    data = load_data(setup("Counts"))
    assert create_model(setup("Counts"), data).n == 0


def test_a_network_that_trains_on_other_batches_than_two_images_is_left_to_train(here):
    create_model(setup("Fours"), load_data(setup("Fours")))


@pytest.mark.parametrize("name", ["own_nets_xyz.py:Lazy", "./own_nets_xyz.py:Lazy"])
def test_a_file_is_not_a_module(name):
    with pytest.raises(ValueError, match="write own_nets_xyz:Lazy"):
        models.named(name)

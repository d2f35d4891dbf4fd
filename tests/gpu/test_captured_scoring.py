"""Scoring by CUDA graphs: in float64 the masks of a CPU, and what cannot be recorded says so."""

import pytest
import torch
from torch import nn

import skeletal
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.devices import own_stream
from skeletal.harness.runs import finding
from skeletal.harness.runs.captured_scoring import CapturedDerivatives
from tests.cases import convnet, images
from tests.gpu.test_graph import Asks
from tests.gpu.test_prune import METHODS, doubled

GPU = torch.device("cuda", 0)


def captured(model, batches, **settings):
    with own_stream(GPU):
        return skeletal.prune(
            model.cuda(), batches, density=0.2, on_collapse="keep", engine=CapturedDerivatives, **settings
        )


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_mask_is_the_one_of_a_cpu(settings, recwarn):
    batches = doubled(images(3))
    expected = skeletal.prune(convnet().double(), batches, density=0.2, on_collapse="keep", **settings)
    assert captured(convnet().double(), batches, **settings).digest == expected.digest
    assert not [warning for warning in recwarn if "kernel by kernel" in str(warning.message)]


def test_a_network_that_asks_for_values_is_scored_kernel_by_kernel():
    settings, batches = {"method": "force", "steps": 4}, doubled(images(3))
    expected = skeletal.prune(
        nn.Sequential(convnet().double(), Asks()), batches, density=0.2, on_collapse="keep", **settings
    )
    with pytest.warns(UserWarning, match="kernel by kernel"):
        mask = captured(nn.Sequential(convnet().double(), Asks()), batches, **settings)
    assert mask.digest == expected.digest
    assert captured(convnet().double(), batches, **settings).kept == expected.kept  # nothing is left of what failed


def test_random_layers_draw_what_they_draw_without_a_recording():
    def network():
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return nn.Sequential(convnet(), nn.Dropout(0.3), nn.Linear(10, 10)).double()

    settings, batches = {"method": "force", "steps": 4}, doubled(images(3))
    losses: list[list[float]] = [[], []]
    plain = settings | {"density": 0.2, "on_collapse": "keep"}
    skeletal.prune(network().cuda(), batches, on_step=lambda s: losses[0].append(s.loss), **plain)
    captured(network(), batches, on_step=lambda s: losses[1].append(s.loss), **settings)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_command_scores_by_graphs(monkeypatch):
    taken = []
    visit = CapturedDerivatives._visit
    monkeypatch.setattr(CapturedDerivatives, "_visit", lambda self, *a: taken.append(visit(self, *a)) or taken[-1])
    setup = Setup(device="cuda")
    data = finding.load_data(setup)
    model, pruning = finding.create_model(setup, data), resolve(Pruning(density=0.05, steps=25), "quick")
    mask = finding.find_mask(model, data, setup, pruning, progress=False)
    assert len(taken) == 25 and mask.kept == round(0.05 * mask.total)

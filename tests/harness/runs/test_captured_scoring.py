"""Scoring by a recorded pass, on a CPU without a recording: the same masks to the bit, whatever happens."""

import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.model.gradients import Derivatives
from skeletal.harness.runs.captured_scoring import CapturedDerivatives
from skeletal.harness.training import choose_step
from tests.cases import convnet, images
from tests.harness.training.blobs import PyDrop
from tests.harness.training.recorded import Refuses, Uncaptured

METHODS = [
    {"method": "force", "steps": 4},
    {"method": "force-regrow", "steps": 3},
    {"method": "snip", "batches_per_step": 3},
    {"method": "snip", "batches_per_step": 3, "average": "absolute"},
    {"method": "grasp", "batches_per_step": 2},
    {"method": "grasp-it", "steps": 3, "bn_mode": "eval"},
    {"method": "force", "steps": 3, "precision": "bfloat16"},
    {"method": "snip", "micro_batch": 5},
]


class Counting(Uncaptured):
    """Counts the passes that are taken by a recording."""

    def __init__(self):
        super().__init__()
        self.replayed = 0

    def record(self, step):
        super().record(step)

        def counting():
            self.replayed += 1
            step()

        return counting


class Halves(Uncaptured):
    """Gradients of half the loss."""

    def record(self, step):
        (leaves,) = (c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, dict) and all(
            isinstance(value, torch.Tensor) and value.requires_grad for value in c.cell_contents.values()
        ))  # fmt: skip

        def halving():
            step()
            for leaf in leaves.values():
                leaf.grad = leaf.grad / 2

        return halving


def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(convnet(), nn.Dropout(0.3), nn.Linear(10, 10))


def found(engine, settings):
    losses = []
    mask = skeletal.prune(
        network(), images(3), density=0.2, on_collapse="keep", engine=engine, on_step=lambda s: losses.append(s.loss),
        **settings,
    )  # fmt: skip
    return mask, losses


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: "-".join(map(str, s.values())))
def test_masks_and_losses_are_the_same_to_the_bit(monkeypatch, settings):
    expected = found(Derivatives, settings)
    recorder = Counting()
    monkeypatch.setattr(choose_step, "recorder_for", lambda device: recorder)
    mask, losses = found(CapturedDerivatives, settings)
    assert mask.digest == expected[0].digest and losses == expected[1]
    if "micro_batch" not in settings:  # whose pieces are of different sizes, and share the loss
        assert recorder.recorded == 1 and recorder.replayed > 1


class Notes(nn.Module):
    """Notes something of every batch, which the next one meets."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(x.detach().abs().mean())
        return x * (1 + self.seen)


def test_what_a_layer_notes_of_a_batch_meets_the_next_one(monkeypatch):
    def losses(engine):
        model, seen = network().append(Notes()), []
        batches = [(x / (k + 1), y) for k, (x, y) in enumerate(images(3))]
        skeletal.prune(
            model, batches, density=0.5, method="force", steps=2, batches_per_step=3, engine=engine,
            on_step=lambda step: seen.append(step.loss),
        )  # fmt: skip
        assert model[-1].seen == 0
        return seen

    expected = losses(Derivatives)
    monkeypatch.setattr(choose_step, "recorder_for", lambda device: Uncaptured())
    assert losses(CapturedDerivatives) == expected


def test_a_network_that_draws_from_python_and_numpy_is_not_recorded(monkeypatch):
    def mask(engine):
        return skeletal.prune(network().append(PyDrop()), images(3), density=0.5, steps=2, engine=engine)

    expected = mask(Derivatives)
    monkeypatch.setattr(choose_step, "recorder_for", lambda device: Uncaptured())
    with pytest.warns(UserWarning, match="kernel by kernel .*draws random numbers from Python's"):
        assert mask(CapturedDerivatives).digest == expected.digest


@pytest.mark.parametrize(
    ("recorder", "message"), [(Refuses, "stream is capturing"), (Halves, "off by 0.5, where rounding explains 0.02")]
)
def test_a_recording_that_is_wrong_is_not_scored_by(monkeypatch, recorder, message):
    expected = found(Derivatives, METHODS[0])
    monkeypatch.setattr(choose_step, "recorder_for", lambda device: recorder())
    with pytest.warns(UserWarning, match=f"kernel by kernel .*{message}"):
        mask, losses = found(CapturedDerivatives, METHODS[0])
    assert mask.digest == expected[0].digest and losses == expected[1]


def test_a_loss_that_is_nan_is_named_as_it_is_without_a_recording(monkeypatch):
    monkeypatch.setattr(choose_step, "recorder_for", lambda device: Uncaptured())
    batches = images(3)
    batches[2][0].fill_(torch.nan)
    with pytest.raises(skeletal.NonFiniteError, match="the loss is nan on batch 3"):
        skeletal.prune(network(), batches, density=0.2, method="force", steps=4, engine=CapturedDerivatives)


def test_a_cpu_records_nothing():
    assert found(CapturedDerivatives, METHODS[0])[0].digest == found(Derivatives, METHODS[0])[0].digest

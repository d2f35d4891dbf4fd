"""A training is the textbook's loop, with a mask or without, and leaves what it should."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from skeletal.harness.config import Training
from tests.harness.training.blobs import (
    BATCH,
    EXAMPLES,
    TRAINING,
    HalfMask,
    Split,
    blobs,
    convnet,
    folder,
    mlp,
    run,
    same,
)


def test_training_learns_and_reports(tmp_path):
    place = folder(tmp_path)
    model = mlp()
    result = run(model, blobs(), folder=place)
    rows = place.metrics()
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.005, 0.0005])
    assert rows[0]["train_loss"] > rows[-1]["train_loss"]
    assert result.epochs == 3 and result.train.examples == EXAMPLES
    assert result.validation.examples == 20 and result.test.examples == 31
    assert result.test.top1 > 60 and result.test.top5 == 100
    assert result.seconds > 3 * result.seconds_per_epoch > 0
    assert ["test_top1" in row for row in rows] == [False, False, True]
    assert same(load_file(place.path / "model.safetensors"), dict(model.state_dict()))
    assert not place.finished  # the caller's part


def test_it_is_the_textbook_loop():
    data, model, reference = blobs(), mlp(), mlp()
    training = Training(
        epochs=2, batch_size=BATCH, lr=0.1, momentum=0.9, weight_decay=1e-3, milestones=(0.5,), decay="steps"
    )
    run(model, data, training, seed=3)
    torch.manual_seed(3)
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    for epoch, lr in enumerate([0.1, 0.01]):
        for x, y in data.train.batches(BATCH, train=True, seed=3, epoch=epoch):
            reference.zero_grad()
            nn.functional.cross_entropy(reference(x), y).backward()
            with torch.no_grad():
                for p, v in zip(reference.parameters(), velocity, strict=True):
                    v.mul_(0.9).add_(p.grad + 1e-3 * p)
                    p.sub_(lr * v)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_skeleton_stays_one_and_is_checked_before_every_checkpoint(tmp_path):
    model, mask = mlp(), HalfMask()
    run(model, blobs(), mask=mask, folder=folder(tmp_path))
    assert mask.checks == 3
    assert not model[0].weight[:, ::2].any() and model[0].weight[:, 1::2].all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_real_mask_holds(channels_last):
    Mask = pytest.importorskip("skeletal.core.masks.mask").Mask
    model = convnet()
    keep = torch.rand_like(model[0].weight) < 0.3
    training = Training(**{**vars(TRAINING), "channels_last": channels_last})
    run(model, blobs((3, 6, 6)), training, mask=Mask({"0.weight": keep}))
    assert torch.equal(model[0].weight != 0, keep)


def test_tied_weights_can_be_loaded_again(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    run(model, blobs(), folder=folder(tmp_path))
    trained = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    model.load_state_dict(load_file(folder(tmp_path).path / "model.safetensors"))
    assert torch.equal(model[0].weight, trained) and model[2].weight is model[0].weight


def test_no_validation_examples():
    assert run(mlp(), blobs(validation=0)).validation is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": None, "epochs": None}, "needs epochs, lr"),
        ({"epochs": 0}, "epochs must"),
        ({"batch_size": 0}, "batch_size must"),
        ({"engine": "spars"}, "unknown engine 'spars'"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        run(mlp(), blobs(), Training(**{**vars(TRAINING), **change}))


def test_an_empty_training_split():
    data = blobs()
    data.train = Split(0, (8,))
    with pytest.raises(ValueError, match="nothing to train on"):
        run(mlp(), data)


def test_the_callers_denormals_come_back():
    run(mlp(), blobs())
    assert (torch.full((1,), 1e-30) * 1e-9).item() != 0


def test_importing_does_not_load_accelerate():
    code = "import sys, skeletal.harness.training.train; sys.exit('accelerate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

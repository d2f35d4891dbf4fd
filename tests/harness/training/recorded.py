"""A training on digits for the static step to take, and what stands in for a CUDA graph."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import skeletal
from skeletal.harness import data as data_sets
from skeletal.harness.training import choose_step
from skeletal.harness.training.train import train
from tests.cases import random_mask
from tests.harness.training import blobs

EXAMPLES, BATCH = 150, 32  # five batches, the last of 22
TRAINING = replace(blobs.TRAINING, batch_size=BATCH)


class Uncaptured:
    """In place of a CUDA graph: what was to be recorded, called again."""

    def __init__(self):
        self.recorded = 0

    def record(self, step):
        self.recorded += 1
        return step

    def synchronize(self):
        pass


class Refuses(Uncaptured):
    """As CUDA does where a network asks for a value."""

    def record(self, step):
        step()  # half-way through: weights have moved
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")


def digits():
    whole = data_sets.load("digits")
    first = lambda split, count: replace(split, members=split.members[:count])  # noqa: E731
    return replace(
        whole, train=first(whole.train, EXAMPLES), validation=first(whole.validation, 40), test=first(whole.test, 50)
    )


DATA = digits()


def network():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 10),
        )  # fmt: skip


def mask_of(model):
    return skeletal.Mask(random_mask(model, 0.3))


@pytest.fixture
def static(monkeypatch):
    """Let runs take the static step, on this recorder or another."""

    def use(recorder=None):
        recorder = recorder or Uncaptured()
        monkeypatch.setattr(choose_step, "recorder_for", lambda device: recorder)
        return recorder

    return use


def run(training=TRAINING, model=None, data=DATA, **options):
    model = model or network()
    train(model, data, training, mask=mask_of(network()), device="cpu", progress=False, **options)
    return model

"""Networks to score by dense weights or on a skeleton, and `prune` that takes the skeleton."""

from unittest import mock

import pytest
import torch
from torch import nn

import skeletal
from skeletal.engine import scoring
from tests.cases import Residual, convnet, images


def residual():
    model = Residual()
    model.dropout = nn.Dropout(0)
    return model


class Unused(nn.Module):
    """A network one of whose layers never runs, beside a sequence that only runs dense."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.never = nn.Conv2d(6, 6, 3)
        self.line = nn.Conv1d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.line(torch.relu(self.stem(x)).flatten(2)).mean(2))


NETWORKS = {"convnet": lambda: convnet(width=16), "residual": residual, "unused": Unused}


def doubles(count=3):
    return [(x.double(), y) for x, y in images(count)]


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return NETWORKS[name]().double()


@pytest.fixture
def early():
    """On the skeleton from the first pruned weight on."""
    with mock.patch.dict(scoring.BREAK_EVEN, float32=0.9, bfloat16=0.9):
        yield


def prune(model, **options):
    settings = dict(density=0.05, steps=8, engine="sparse") | options
    return skeletal.prune(model, settings.pop("batches", None) or images(), **settings)

"""What a recorded step would repeat: random numbers drawn by the processor."""

import random

import numpy
import pytest
import torch
from torch import nn

from skeletal.core.model.state.processor_draws import ProcessorDraws

GPU = torch.device("cuda")


class Drops(nn.Module):
    """Stochastic depth as public codes have it, with generators of its own beside."""

    def __init__(self, draw):
        super().__init__()
        self.generator, self.tables = torch.Generator(), {"numpy": numpy.random.default_rng(0)}
        self.draw = draw

    def forward(self, x):
        return x if self.draw(self) < 0.5 else torch.zeros_like(x)


@pytest.mark.parametrize(
    ("draw", "whose"),
    [
        (lambda part: torch.rand(1), "torch's"),
        (lambda part: random.random(), "Python's"),
        (lambda part: numpy.random.rand(), "numpy's"),
        (lambda part: torch.rand(1, generator=part.generator), "its own"),
        (lambda part: part.tables["numpy"].random(), "its own"),
    ],
)
def test_draws_of_the_processor_are_refused(draw, whose):
    model = nn.Sequential(nn.Linear(2, 2), Drops(draw))
    draws = ProcessorDraws(model, GPU)
    draws.refuse()
    model(torch.zeros(1, 2))
    with pytest.raises(RuntimeError, match=f"draws random numbers from {whose} generator on the CPU"):
        draws.refuse()


def test_draws_of_the_device_are_not():
    draws = ProcessorDraws(nn.Linear(2, 2), torch.device("cpu"))
    torch.rand(3)
    draws.refuse()

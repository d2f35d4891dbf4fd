"""What a network's own code writes to its attributes is put back, whatever holds it."""

from array import array
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import nn

import skeletal
from skeletal.core.model.preserve import preserve_model
from skeletal.core.model.state.snapshot import Snapshot
from tests.cases import images


class Slotted:
    __slots__ = ("__seen", "late", "many")

    def __init__(self):
        self.__seen, self.many = 0, []

    def see(self):
        self.__seen += 1
        self.many.append(self.__seen)
        self.late = True

    def __repr__(self):
        return f"{self.__seen} {self.many} {hasattr(self, 'late')}"


@dataclass(frozen=True, slots=True)
class Frozen:
    counts: numpy.ndarray


class Watched(nn.Module):
    """Counts its calls in everything that can be written to."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(16, 10)
        self.counts, self.bytes, self.array = numpy.zeros((2, 3))[:, 1:], bytearray(2), array("d", [0.0, float("nan")])
        self.objects = numpy.array([None, "text"], dtype=object)
        self.slotted, self.frozen = Slotted(), Frozen(numpy.zeros(2))
        self.fixed = numpy.zeros(2)
        self.fixed.flags.writeable = False
        self.empty, self.text = [], {"a": {1}}

    def forward(self, x):
        self.counts += 1
        self.bytes[0] += 1
        self.array[0] += 1
        self.objects[0] = object()
        self.slotted.see()
        self.frozen.counts[1] += 1
        self.empty.append(1)
        self.text["a"].add(len(self.empty))
        return self.head(self.body(x))

    def state(self):
        return repr([value for name, value in sorted(vars(self).items()) if not name.startswith("_")])


@pytest.mark.parametrize("what", ["snapshot", "prune", "diagnose"])
def test_attributes_are_as_before(what):
    model = Watched()
    model(torch.randn(2, 3, 8, 8))
    before, counts = model.state(), model.counts
    match what:
        case "snapshot":
            snapshot = Snapshot(model)
            model(torch.randn(2, 3, 8, 8))
            assert model.state() != before and snapshot.written(model) is not None
            snapshot.restore()
            assert snapshot.written(model) is None
        case "prune":
            skeletal.prune(model, images(), density=0.3, method="force", steps=2)
        case "diagnose":
            skeletal.diagnose(model, skeletal.prune(model, density=0.3, method="random"), torch.randn(2, 3, 8, 8))
    assert model.state() == before
    assert model.counts is counts


def test_slots_that_were_empty_are_emptied():
    model = Watched()
    snapshot = Snapshot(model)
    model(torch.randn(1, 3, 8, 8))
    assert model.slotted.late
    snapshot.restore()
    assert not hasattr(model.slotted, "late") and repr(model.slotted) == "0 [] False"


def test_a_lazy_layer_is_refused_and_left_as_it_is():
    model = nn.Sequential(nn.LazyLinear(3))
    refused = pytest.raises(ValueError, match=r"0\.weight has no shape yet: run the lazy model once")
    with refused, preserve_model(model, training=False, seed=0):
        model(torch.zeros(1, 2))
    assert model(torch.zeros(1, 2)).shape == (1, 3)

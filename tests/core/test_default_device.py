"""`torch.set_default_device` is for tensors that the caller makes: "meta" stands in for a GPU here."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import skeletal
from tests.cases import Tokens, convnet, images, tokens

MODEL, OF_TOKENS, IMAGES, TOKENS = convnet(), Tokens(), images(), tokens()


def prune(path, method="random", **options):
    return skeletal.prune(MODEL, IMAGES, density=0.3, method=method, **options)


def save_and_load(path):
    mask = prune(path)
    mask.save(path / "mask.safetensors")
    return mask.digest, skeletal.Mask.load(path / "mask.safetensors"), mask.shuffled(0)


def compact(path):
    return skeletal.compact(MODEL, prune(path, pattern="channels"), IMAGES[0][0]).report


def train(path):
    model, (x, y) = copy.deepcopy(MODEL), IMAGES[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    update = skeletal.MaskUpdate(prune(path).attach(model), optimizer, skeletal.SET(every=1), steps=4)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    update.step()
    return update.mask


METHODS = ("force", "random", "synflow", "phew", "npb", "px", "ntk-sap", "prospr", "grasp", "random-erk")
CALLS = {method: partial(prune, method=method) for method in METHODS}
CALLS |= {pattern: partial(prune, pattern=pattern) for pattern in ("4x4", "fan-in", "channels")}
CALLS |= {call.__name__: call for call in (save_and_load, compact, train)} | {
    "2:4": lambda path: skeletal.prune(MODEL, IMAGES, density=0.25, pattern="2:4"),
    "tokens": lambda path: skeletal.prune(OF_TOKENS, TOKENS, density=0.5, method="snip"),
    "diagnose": lambda path: skeletal.diagnose(MODEL, prune(path), IMAGES[0][0]),
}


def on_another_device(call):
    torch.set_default_device("meta")
    try:
        return call()
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.filterwarnings("ignore:.*layers.*")
def test_a_default_device_changes_nothing(call, tmp_path):
    expected, found = call(tmp_path), on_another_device(lambda: call(tmp_path))
    assert found == expected
    if isinstance(found, skeletal.Mask):
        assert found.metadata == expected.metadata


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_a_default_device_does_not_reach_a_compiled_network(path):
    mask = skeletal.prune(MODEL, IMAGES, density=0.1, method="random")

    def trained():
        scored = skeletal.prune(MODEL, IMAGES, density=0.1, steps=2, engine="sparse")
        network = skeletal.compile(MODEL, mask, IMAGES[0][0], path=path)
        nn.functional.cross_entropy(network(IMAGES[0][0]), IMAGES[0][1]).backward()
        return scored, [parameter.grad for parameter in network.parameters()]

    (scored, expected), (again, found) = trained(), on_another_device(trained)
    assert again == scored
    assert again.metadata == scored.metadata
    torch.testing.assert_close(found, expected)

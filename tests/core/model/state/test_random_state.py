"""Which random generators are seeded and restored: those the model may draw from, and no others."""

from types import SimpleNamespace

import pytest
import torch

import skeletal
from skeletal.core.model.preserve import preserve_random_state
from skeletal.core.model.state.random_state import seed_all
from tests.cases import convnet, images


@pytest.mark.parametrize("method", ["force", "prospr", "ntk-sap"])
def test_a_model_on_the_cpu_leaves_the_generators_of_other_devices_alone(method, monkeypatch):
    seeded: list[str] = []
    model = convnet()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for kind in (torch.cuda, torch.mps, torch.xpu):
        for name in {"manual_seed", "manual_seed_all"} & set(vars(kind)):
            monkeypatch.setattr(kind, name, lambda seed, name=name: seeded.append(name))
    mask = skeletal.prune(model, images(), density=0.3, method=method, steps=1)
    skeletal.compact(model, mask, images()[0][0])
    assert not seeded


def test_the_generator_of_the_models_device_is_seeded_and_restored(monkeypatch):
    """With generators of the CPU in place of two GPUs'."""
    others = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    monkeypatch.setattr(torch.cuda, "default_generators", others)
    weight = SimpleNamespace(device=torch.device("cuda", 1))
    model = SimpleNamespace(parameters=lambda: [weight], buffers=lambda: [])
    before = [generator.get_state() for generator in others]
    with preserve_random_state(model):
        seed_all(7, model)
        assert [generator.initial_seed() for generator in (torch.default_generator, *others)] == [7, 1, 7]
    assert all(torch.equal(a, generator.get_state()) for a, generator in zip(before, others, strict=True))


def test_seeds_are_those_of_torch():
    seed_all(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))

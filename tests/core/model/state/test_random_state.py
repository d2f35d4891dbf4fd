"""Which random generators are seeded and restored: those the model may draw from, and no others."""

import random
from types import SimpleNamespace

import numpy
import pytest
import torch

import skeletal
from skeletal.core.model.preserve import preserve_random_state
from skeletal.core.model.state.random_state import RandomState, beside_torch, seed_all, set_beside_torch
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


def drawn():
    return random.random(), numpy.random.rand(), numpy.random.randn()


def test_states_beside_torch_come_back_from_a_file_of_data(tmp_path):
    numpy.random.randn()  # which leaves a second number behind
    torch.save(beside_torch(), tmp_path / "states.pt")
    expected = drawn()
    set_beside_torch(torch.load(tmp_path / "states.pt", weights_only=True))
    assert drawn() == expected


@pytest.fixture
def another_bit_generator():
    bits = numpy.random.get_bit_generator()
    numpy.random.set_bit_generator(numpy.random.PCG64(1))
    yield
    numpy.random.set_bit_generator(bits)


def test_another_numpy_generator_than_its_own_is_left_out(another_bit_generator):
    states = beside_torch()
    assert states["numpy"] is None
    set_beside_torch(states)


def test_what_preserves_random_numbers_knows_any_generator_of_numpy(another_bit_generator):
    before = RandomState()
    expected = drawn()
    assert RandomState() != before
    before.restore()
    assert RandomState() == before
    assert drawn() == expected


@pytest.mark.parametrize(
    "change",
    [
        {"python": None},
        {"python": (3, (1, 2), None)},
        {"python": (3, (*[1] * 624, 625), None)},
        {"numpy": ("MT19937", [1] * 624, 625, 0, 0.0)},
        {"numpy": ("MT19937", [1] * 624, -1, 0, 0.0)},
        {"numpy": ("PCG64", [1] * 624, 1, 0, 0.0)},
        {"numpy": 3},
    ],
)
def test_a_strangers_states_are_refused(change):
    before = beside_torch()
    with pytest.raises(TypeError, match="a random generator's state is damaged"):
        set_beside_torch(before | change)
    set_beside_torch(before)

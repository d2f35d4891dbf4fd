"""Pruning on a GPU: the CPU's masks in float64, nothing of the model moved, no generator disturbed."""

import copy

import pytest
import torch
from torch import nn

import skeletal
from tests.cases import convnet, images
from tests.cases import random_mask as drawn

METHODS = [
    *({"method": name} for name, row in skeletal.METHODS.items() if row.one_shot),
    *({"method": name, "steps": 4} for name, row in skeletal.METHODS.items() if not row.one_shot),
    {"method": "snip", "batches_per_step": 3},
    {"method": "snip", "batches_per_step": 3, "average": "absolute"},
    {"method": "force", "steps": 3, "bn_mode": "eval"},
]


def doubled(batches):
    return [(x.double(), y) for x, y in batches]


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_mask_is_the_one_of_a_cpu(settings):
    batches = doubled(images(3))
    masks = [
        skeletal.prune(convnet().double().to(device), batches, density=0.2, on_collapse="keep", **settings)
        for device in ("cpu", "cuda")
    ]
    assert all(torch.equal(masks[0][name], masks[1][name].cpu()) for name in masks[0])
    assert masks[0].digest == masks[1].digest
    assert masks[1].kept == round(0.2 * masks[1].total)


def test_the_model_and_every_generator_stay_as_they_are():
    model = nn.Sequential(convnet(), nn.Dropout(0.5), nn.Linear(10, 10)).cuda()
    before, states = copy.deepcopy(model.state_dict()), (torch.get_rng_state(), torch.cuda.get_rng_state())
    first = skeletal.prune(model, images(2), density=0.1, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state()) and torch.equal(states[1], torch.cuda.get_rng_state())
    torch.rand(3, device="cuda")
    assert skeletal.prune(model, images(2), density=0.1, steps=3).digest == first.digest


def test_bf16_scoring_keeps_exactly_as_many():
    mask = skeletal.prune(convnet().cuda(), images(2), density=0.1, steps=4, precision="bfloat16")
    assert mask.kept == round(0.1 * mask.total)


def test_a_large_exact_selection_equals_a_sort():
    scores = torch.rand(3_000_000, device="cuda").round(decimals=4)  # with many ties
    chosen = skeletal.core.masks.selection.top(scores, 12_345)
    order = scores.cpu().sort(descending=True, stable=True).indices[:12_345]
    assert int(chosen.sum()) == 12_345
    assert chosen.cpu()[order].all()


def test_saved_on_a_gpu_loaded_anywhere(tmp_path):
    model = convnet().cuda()
    mask = skeletal.prune(model, images(1), density=0.1, method="snip")
    mask.save(tmp_path / "m.safetensors")
    again = skeletal.Mask.load(tmp_path / "m.safetensors")
    assert again.digest == mask.digest
    again.attach(model)
    again.check(model)


def test_diagnosis_and_local_optimality_agree_with_the_cpu():
    mask, x = skeletal.Mask(drawn(convnet(), 0.3)), torch.randn(2, 3, 8, 8)
    found = [skeletal.diagnose(convnet().to(device), mask, x.to(device)) for device in ("cpu", "cuda")]
    assert found[0] == found[1]

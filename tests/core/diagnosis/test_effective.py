"""Which weights signals pass, against brute force: following kept weights, and trying to train them."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skeletal.core.diagnosis.diagnose import diagnose
from skeletal.core.diagnosis.effective import effective_weights
from skeletal.core.model.preserve import preserve_model
from skeletal.core.model.weights import prunable_weights
from skeletal.harness.models.vgg import vgg
from tests.cases import convnet, images, random_mask
from tests.core.diagnosis.following import equal, followed, followed_by_pixel


def sort(model, mask, inputs):
    with preserve_model(model, training=False, seed=0):
        return effective_weights(model, mask, inputs if isinstance(inputs, dict) else (inputs, None))


@given(st.integers(0, 10_000), st.floats(0.05, 0.5), st.integers(1, 5), st.lists(st.booleans(), min_size=6, max_size=6))
def test_multilayer_perceptron_against_following_every_path(seed, density, depth, biases):
    sizes = [5, *[6] * depth, 3]
    layers = []
    for i, bias in zip(range(depth + 1), biases, strict=False):
        layers += [nn.Linear(sizes[i], sizes[i + 1], bias=bias), nn.ReLU()]
    model = nn.Sequential(*layers)
    mask = random_mask(model, density, seed)
    biased = {f"{2 * i}.weight": bias for i, bias in enumerate(biases)}
    effective, constant = followed(mask, biased, torch.ones(5, dtype=torch.bool))
    found = sort(model, mask, torch.randn(3, 5))
    equal(found[0], effective)
    equal(found[1], constant)


@given(st.integers(0, 10_000), st.floats(0.02, 0.5), st.booleans(), st.booleans())
def test_convolutional_network_against_following_every_path_from_pixel_to_pixel(seed, density, norm, bias):
    def block(inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        return [convolution, nn.BatchNorm2d(outputs) if norm else nn.Identity(), nn.ReLU()]

    pool, flatten, head = nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3, bias=False)
    model = nn.Sequential(*block(3, 4), *block(4, 4), pool, *block(4, 4), flatten, head)
    mask = random_mask(model, density, seed)
    effective, constant = followed_by_pixel(mask, norm or bias, 4)
    found = sort(model, mask, torch.randn(2, 3, 4, 4))
    equal(found[0], effective)
    equal(found[1], constant)


@pytest.mark.parametrize("seed", range(4))
def test_vgg_against_following_every_path_from_channel_to_channel(seed):
    model = vgg((4, 4, "M", 6, 6, "M", 5), num_classes=3, in_channels=3, image_size=16)
    mask = random_mask(model, (0.02, 0.05, 0.1, 0.2)[seed], seed)
    effective, constant = followed(mask, dict.fromkeys(mask, True), torch.ones(3, dtype=torch.bool))
    found = sort(model, mask, torch.randn(2, 3, 16, 16))
    equal(found[0], effective)
    equal(found[1], constant)


class Smooth(nn.Module):
    """No dead units, no ties: a generic weight has a generic gradient."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        x = x + self.norm(self.second(torch.tanh(self.first(x))))
        return self.head(nn.functional.softplus(self.up(x)).mean((2, 3)))


@pytest.mark.parametrize("seed", range(12))
def test_gradients_reach_what_is_effective_or_on_a_constant_and_nothing_else(seed):
    model = Smooth().double().eval()
    mask = random_mask(model, (0.15, 0.3, 0.5)[seed % 3], seed)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    effective, constant = sort(model, mask, x.float())
    generator = torch.Generator().manual_seed(seed)
    trained = {name: torch.zeros_like(keep) for name, keep in mask.items()}
    for _ in range(4):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                parameter.mul_(mask.get(name, 1))
        model.zero_grad()
        outputs = model(x)
        (outputs * torch.randn(outputs.shape, generator=generator)).sum().backward()
        for name in mask:
            trained[name] |= model.get_parameter(name).grad.ne(0) & mask[name]
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for name, keep in mask.items():
                dead = keep & ~effective[name] & ~constant[name]
                changed.get_parameter(name)[dead] += 100
            assert torch.equal(changed(x), outputs)
    for name, keep in mask.items():
        assert torch.equal(trained[name], effective[name] | constant[name]), name
        assert not (effective[name] & constant[name]).any()
        assert not ((effective[name] | constant[name]) & ~keep).any()


def test_weights_on_a_constant_change_the_output_by_the_same_for_every_input():
    model = convnet().eval()
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    mask["0.weight"][2:] = False
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.rand_like(parameter) * mask.get(name, 1))
    x = images()[0][0]
    effective, constant = sort(model, mask, x)
    assert constant["3.weight"][:, 2:].all() and effective["3.weight"][:, :2].all()
    assert diagnose(model, mask, x).layers[1].dead_inputs == 6
    before = model(x)
    with torch.no_grad():
        model[3].weight[constant["3.weight"]] *= 2
        moved = model(x) - before
    assert moved.abs().min() > 1e-3
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=1e-4, atol=1e-2)


def test_a_corner_of_a_kernel_on_a_single_pixel_meets_only_padding():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3, 2))
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    found = diagnose(model, mask, torch.randn(2, 2, 1, 1))
    assert [layer.effective for layer in found.layers] == [6, 6]
    assert found.layers[0].dead == 48


def test_a_hundred_layers_neither_overflow_nor_vanish():
    chain = [nn.Sequential(nn.Linear(12, 12), nn.ReLU()) for _ in range(100)]
    model = nn.Sequential(*chain)
    diagonal = {name: torch.eye(12, dtype=torch.bool) for name, _ in prunable_weights(model).items()}
    assert diagnose(model, diagonal, torch.randn(2, 12)).effective == 1200
    dense = {name: torch.ones_like(keep) for name, keep in diagonal.items()}
    assert diagnose(model, dense, torch.randn(2, 12)).effective_density == 1
    one = {name: keep.clone() for name, keep in dense.items()}
    one["0.0.weight"][1:] = False
    one["0.0.weight"][0, 1:] = False
    one["99.0.weight"][1:] = False
    found = diagnose(model, one, torch.randn(2, 12))
    assert [layer.effective for layer in found.layers[:3]] == [1, 12, 144]
    assert found.layers[1].on_constant == 132 and found.layers[99].dead_outputs == 11


def test_saturating_activations_close_no_path():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(20))

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(nn.functional.relu6(x))
            return torch.sigmoid(x)

    model = Skips()
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    assert diagnose(model, mask, torch.randn(2, 4)).effective_density == 1

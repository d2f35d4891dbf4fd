"""What a mask leaves of a network, against brute force: following kept weights, and trying to train them."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import skeletal
from skeletal.core.diagnosis.diagnose import diagnose
from skeletal.core.diagnosis.effective import effective_weights
from skeletal.core.diagnosis.macs import Macs
from skeletal.core.model.preserve import preserve_model
from skeletal.core.model.weights import prunable_weights
from skeletal.harness import models
from skeletal.harness.models.resnet import BasicBlock, resnet
from skeletal.harness.models.vgg import vgg
from tests.cases import ZOO, Everything, Residual, Tokens, convnet, images, random_mask, tokens


def sort(model, mask, inputs):
    with preserve_model(model, training=False, seed=0):
        return effective_weights(model, mask, inputs if isinstance(inputs, dict) else (inputs, None))


def followed(mask, biased, entering):
    """Of a plain chain of linear and convolutional layers: forward and backward over channels, one by one."""
    fed, live, forward = entering, entering, []
    for name, keep in mask.items():
        forward.append((fed, live))
        pairs = keep.reshape(*keep.shape[:2], -1).any(2)
        fed = (pairs & fed).any(1)
        live = (pairs & live).any(1) | biased[name]
    effective, constant = {}, {}
    useful = torch.ones(len(fed), dtype=torch.bool)
    for (name, keep), (fed, live) in reversed(list(zip(mask.items(), forward, strict=True))):
        reaching = keep.reshape(*keep.shape[:2], -1) & useful[:, None, None]
        effective[name] = (reaching & fed[:, None]).view_as(keep)
        constant[name] = (reaching & (live & ~fed)[:, None]).view_as(keep)
        useful = reaching.any(2).any(0)
    return effective, constant


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


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


def followed_by_pixel(mask, biased, size):
    """Of two convolutions, a 2x2 max pool, a convolution and a linear layer: forward and backward over pixels."""
    keeps = [keep.double() for keep in mask.values()]
    convolve = nn.functional.conv2d
    layers = list(mask)
    entering = torch.ones(1, keeps[0].shape[1], size, size).double()
    states = []
    for bias in (False, biased):  # without and with what biases make
        x, seen = entering, []
        for i, keep in enumerate(keeps):
            x = nn.functional.max_pool2d(x, 2) if i == 2 else x.flatten(1) if i == 3 else x
            seen.append(x)
            x = (x @ keep.T if i == 3 else convolve(x, keep, padding=1)).gt(0).double()
            x = torch.ones_like(x) if bias and i < 3 else x
        states.append(seen)
    found = []
    for seen in states:
        useful, reached = torch.ones(1, len(keeps[3])).double(), {}
        for i, keep in reversed(list(enumerate(keeps))):
            if i == 3:
                reached[layers[i]] = (useful.T @ seen[i]) * keep > 0
                useful = (useful @ keep).view(1, len(keeps[2]), size // 2, size // 2)
            else:
                shares = nn.grad.conv2d_weight(seen[i], keep.shape, useful, padding=1)
                reached[layers[i]] = (shares > 0.5) & mask[layers[i]]
                useful = nn.grad.conv2d_input(seen[i].shape, keep, useful, padding=1)
                useful = useful.repeat_interleave(2, 2).repeat_interleave(2, 3) if i == 2 else useful
            useful = useful.gt(0.5).double()
        found.append(reached)
    return found[0], {name: found[1][name] & ~found[0][name] for name in mask}


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


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_network_dense_and_empty_and_left_as_found(name):
    make, data = ZOO[name]
    model, batch = make().train(), data()[0]
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    state, hooks = copy.deepcopy(model.state_dict()), [len(m._forward_hooks) for m in model.modules()]
    before = torch.get_rng_state()
    found = diagnose(model, mask, batch)
    assert torch.equal(before, torch.get_rng_state())
    equal(state, model.state_dict())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert hooks == [len(m._forward_hooks) for m in model.modules()]
    assert found.connected and found.effective == found.effective_density * sum(k.numel() for k in mask.values())
    if name != "everything":  # which looks at parts of its signal only
        assert found.effective_density == 1
    assert found.macs.forward_dense == found.macs.forward_kept > 0
    assert 2 < found.macs.training_dense / found.macs.forward_dense <= 3
    empty = diagnose(model, {name: torch.zeros_like(keep) for name, keep in mask.items()}, batch)
    assert (empty.connected, empty.effective, empty.macs.training_kept) == (False, 0, 0)
    assert empty.skip_only == () and len(empty.dead_layers) == len(mask)


def test_survival_only_through_a_skip_connection_is_told():
    model = Residual()
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    mask["block.0.weight"].zero_()
    found = diagnose(model, mask, images()[0])
    assert found.connected and found.skip_only == ("block.0.weight",)
    assert "survives only around block.0.weight" in str(found) and "empty" in str(found)
    mask["stem.weight"].zero_()
    found = diagnose(model, mask, images()[0])
    assert not found.connected and not found.skip_only and "cannot learn" in str(found)
    assert found.layers[-1].on_constant == 60  # the stem has biases


def test_a_layer_cut_off_by_an_empty_one_survives_around_too():
    model = resnet(BasicBlock, (1, 1), 4, num_classes=3, in_channels=2, image_size=8)
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    example = torch.randn(2, 2, 8, 8)
    assert diagnose(model, mask, example).effective_density == 1
    mask["layer1.0.conv1.weight"].zero_()
    found = diagnose(model, mask, example)
    assert found.skip_only == ("layer1.0.conv1.weight", "layer1.0.conv2.weight")
    rows = {layer.name: layer for layer in found.layers}
    assert rows["layer1.0.conv1.weight"].empty and not rows["layer1.0.conv2.weight"].empty
    assert rows["layer1.0.conv2.weight"].on_constant == 4 * 4 * 9
    mask["layer1.0.conv1.weight"].fill_(True)
    mask["layer1.0.conv2.weight"].zero_()
    rows = {layer.name: layer for layer in diagnose(model, mask, example).layers}
    assert rows["layer1.0.conv1.weight"].dead == 4 * 4 * 9


@pytest.mark.parametrize("seed", range(4))
def test_vgg_against_following_every_path_from_channel_to_channel(seed):
    model = vgg((4, 4, "M", 6, 6, "M", 5), num_classes=3, in_channels=3, image_size=16)
    mask = random_mask(model, (0.02, 0.05, 0.1, 0.2)[seed], seed)
    effective, constant = followed(mask, dict.fromkeys(mask, True), torch.ones(3, dtype=torch.bool))
    found = sort(model, mask, torch.randn(2, 3, 16, 16))
    equal(found[0], effective)
    equal(found[1], constant)


def test_channels_of_grouped_and_transposed_layers():
    model = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2, bias=False), nn.ConvTranspose2d(6, 4, 1, groups=2, bias=False))
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    mask["0.weight"][:, 1] = False  # the second input of each group
    mask["0.weight"][:2] = False  # the first two outputs, hence the second layer's first two inputs
    mask["1.weight"][:3, 1] = False  # the first group's second output
    first, second = diagnose(model, mask, torch.randn(2, 4, 3, 3)).layers
    assert (first.dead_inputs, first.dead_outputs) == (2, 2)
    assert (second.dead_inputs, second.dead_outputs) == (2, 1)
    assert (first.live_inputs, first.live_outputs, second.live_inputs, second.live_outputs) == (2, 4, 4, 3)


def test_the_narrowest_place_is_named():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3)))
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    mask["1.weight"][:, 2:] = False
    mask["1.weight"][3:] = False
    found = diagnose(model, mask, torch.randn(2, 4, 5, 5))
    assert found.narrowest is not None and found.narrowest.name == found.to_dict()["narrowest"] == "1.weight"
    assert "narrowest: 54 effective weights in 1.weight, from 2 channels to 3" in str(found)
    empty = diagnose(model, {name: torch.zeros_like(keep) for name, keep in mask.items()}, torch.randn(2, 4, 5, 5))
    assert empty.narrowest is None and "narrowest" not in str(empty) and empty.to_dict()["narrowest"] is None


def test_macs_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 108 weights at 8x8
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),  # 108 at 4x4
        nn.ConvTranspose2d(6, 2, 2, stride=2),  # 48 at 4x4, its input
        nn.Flatten(1, 2),
        nn.Linear(8, 5),  # 40 on 16 rows
    )
    mask = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    for keep in mask.values():
        keep.view(-1)[:3] = True
    forward = [108 * 64, 108 * 16, 48 * 16, 40 * 16]
    kept = [3 * 64, 3 * 16, 3 * 16, 3 * 16]
    expected = Macs(sum(forward), sum(kept), 3 * sum(forward) - forward[0], 3 * sum(kept) - kept[0])
    assert diagnose(model, mask, torch.randn(5, 3, 8, 8)).macs == expected


def test_macs_of_attention_and_of_one_layer_used_twice():
    model = Everything()
    mask = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    for name in ("attention.in_proj_weight", "attention.out_proj.weight", "tied.weight"):
        mask[name].fill_(True)
    rows = []
    hook = model.norm.register_forward_hook(lambda _, __, output: rows.append(output.shape[1]))
    model(images(channels=4)[0][0])
    hook.remove()
    kept = diagnose(model, mask, images(channels=4)[0]).macs.forward_kept
    assert kept == rows[0] * (3 * 144 + 144 + 2 * 144)
    model = Tokens()
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    forward = 5 * (3 * 64 + 64 + 2 * 8 * 16 + 17 * 8)  # an encoder layer must not take its fast path past the hooks
    assert diagnose(model, mask, tokens()[0]).macs == Macs(forward, forward, 3 * forward, 3 * forward)
    tied = diagnose(model, {"embedding.weight": torch.ones(17, 8, dtype=torch.bool)}, tokens()[0])
    assert tied.macs.forward_dense == 5 * 17 * 8  # its other use, the lookup, multiplies nothing


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x.view(16, 6))


def test_models_that_take_only_whole_batches_and_those_that_cannot_run():
    model = FixedBatch()
    mask = {"head.weight": torch.ones(3, 6, dtype=torch.bool)}
    found = diagnose(model, mask, torch.randn(16, 6))
    assert found.macs == Macs(18, 18, 36, 36) and found.effective == 18
    with pytest.raises(ValueError, match="FixedBatch does not run on this example: RuntimeError"):
        diagnose(model, mask, torch.randn(7, 5))
    with pytest.raises(skeletal.MaskError, match="belongs to another model"):
        diagnose(model, {"head.weight": torch.ones(3, 5, dtype=torch.bool)}, torch.randn(16, 6))


class Ends(nn.Module):
    """Two layers and a second head; kinds differ in what they make of them."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.one, self.two, self.aux = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 2)
        self.function = forward

    def forward(self, x):
        return self.function(self, torch.relu(self.one(x)))


@pytest.mark.parametrize(
    ("ends", "dead", "unknown"),
    [
        (lambda self, x: {"logits": self.two(x), "loss": self.aux(x).square().mean()}, [], []),
        (lambda self, x: {"loss": self.two(x).mean() + self.aux(x).square().mean()}, [], []),
        (lambda self, x: self.two((x * 8).round()) + self.aux(x).mean(), [], []),
        (lambda self, x: self.two((x * 8).round()) + self.aux((x * 8).round()).mean(), [], ["one.weight"]),
        (lambda self, x: self.two(x) + (self.aux(x) * 8).floor().mean(), [], ["aux.weight"]),
        (lambda self, x: self.two(x) if not self.training else self.aux(x), [], []),
        (lambda self, x: self.two(x) + 0 * self.aux(x).mean(), ["aux.weight"], []),
    ],
)
def test_what_no_gradient_reaches_is_dead_only_if_it_changes_nothing(ends, dead, unknown):
    torch.manual_seed(0)
    model = Ends(ends)
    everything = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    found = diagnose(model, everything, torch.randn(5, 6))
    assert found.connected
    for layer in found.layers:
        kinds = layer.effective, layer.dead, layer.unknown
        assert [kind and layer.name for kind in kinds].count(layer.name) == 1
        assert bool(layer.dead) == (layer.name in dead) and bool(layer.unknown) == (layer.name in unknown)


def test_a_network_that_ends_in_an_argmax_is_not_known():
    found = diagnose(
        Ends(lambda self, x: self.two(x).argmax(-1) + 0.5),
        {"one.weight": torch.ones(8, 6, dtype=torch.bool)},
        torch.randn(5, 6),
    )
    assert found.layers[0].unknown == 48 and not found.layers[0].dead


def test_a_network_that_carries_a_state_from_batch_to_batch():
    class Carrying(nn.Sequential):
        state = 0.0

        def forward(self, x):
            out = super().forward(x) + self.state  # of another batch size it would not fit
            self.state = out.detach()
            return out

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    mask = skeletal.Mask(random_mask(plain, 0.3))
    assert skeletal.diagnose(Carrying(*plain), mask, torch.randn(5, 6)) == skeletal.diagnose(
        plain, mask, torch.randn(5, 6)
    )


def test_a_pruned_resnet_in_numbers():
    model = models.create("resnet20-cifar", num_classes=4, image_size=8)
    mask = skeletal.prune(model, density=0.02, method="random")
    found = diagnose(model, mask, torch.randn(1, 3, 8, 8))
    assert found.connected and 0 < found.effective < mask.kept
    assert all(layer.kept == layer.effective + layer.on_constant + layer.dead for layer in found.layers)
    assert sum(layer.kept for layer in found.layers) == mask.kept
    assert found.macs.forward_kept < 0.03 * found.macs.forward_dense
    assert f"kept {mask.kept:,} of {mask.total:,}" in str(found)

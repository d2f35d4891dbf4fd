"""Widths filled up to a multiple: the same function, with channels of zeros that stay zeros."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import skeletal
from skeletal.harness.models.resnet import Bottleneck, resnet
from tests.cases import convnet, images, random_mask
from tests.compaction.test_compact import OURS, SMALL, X
from tests.engine.blocks import assert_exact, close, mask_of, network


def assert_multiples(small, multiple_of):
    for layer in small.report.layers:
        before, after = layer.outputs
        assert after % multiple_of == 0 or after == before, layer
        assert before - after == layer.removed_zero + layer.removed_unread - layer.padding


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4]))
def test_random_networks_stay_exact(seed, multiple_of):
    model = network(seed)
    small = assert_exact(model, mask_of(model, seed), X, multiple_of=multiple_of)
    assert_multiples(small, multiple_of)


@pytest.mark.parametrize("density", [0.02, 0.2])
@pytest.mark.parametrize("name", ["vgg", "bottleneck", "stable", "lenet5"])
def test_networks_of_ours(name, density):
    torch.manual_seed(0)
    model = OURS[name]().double()
    size = 12 if name == "lenet5" else 8
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    mask = skeletal.Mask(random_mask(model, density))
    small = assert_exact(model, mask, x, multiple_of=4)
    assert_multiples(small, 4)
    least = skeletal.compact(model, mask, x)
    assert least.report.macs[1] <= small.report.macs[1] <= small.report.macs[0]


@pytest.mark.parametrize("name", SMALL)
def test_groups_and_concatenations(name):
    torch.manual_seed(0)
    model = SMALL[name]().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    small = assert_exact(model, skeletal.Mask(random_mask(model, 0.03)), x, steps=1, lr=1e-3, multiple_of=8)
    assert_multiples(small, 8)
    assert any(layer.padding for layer in small.report.layers)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)


@pytest.mark.parametrize("optimizer", [sgd, adam], ids=lambda optimizer: optimizer.__name__)
def test_training_leaves_what_fills_a_width_up_at_zero(optimizer):
    torch.manual_seed(0)
    model = resnet(Bottleneck, (1, 1), 8, num_classes=5, in_channels=3, image_size=8).double()
    for module in model.modules():  # dead channels with values: removed because nothing reads them
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.5, 1)
            nn.init.normal_(module.running_mean)
    mask = skeletal.Mask(random_mask(model, 0.05))
    x, y = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 5
    small = skeletal.compact(model, mask, x, multiple_of=8)
    skeletal.Mask(small.mask).attach(small.model)
    masked = copy.deepcopy(model)
    mask.attach(masked)
    steps = [(net.train(), optimizer(net.parameters())) for net in (masked, small.model)]
    for _ in range(5):
        for net, optim in steps:
            optim.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optim.step()
    found = 0
    for name, tensor in small.model.named_parameters():
        for dim, index in enumerate(small.slices[name]):
            if index is not None and (zeros := (index < 0).nonzero().flatten()).numel():
                found += 1
                assert not tensor.index_select(dim, zeros).any(), name
    assert found > 10
    close(small.model.eval()(x), masked.eval()(x), "output")
    dense = small.to_dense().eval()
    mask.check(dense)
    close(dense(x), masked(x), "dense output")


class Divided(nn.Module):
    """One over what a convolution makes: of zeros that would be infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(2 / self.first(x))).mean((2, 3)))


def test_zeros_are_no_denominators():
    torch.manual_seed(0)
    model = Divided().double()
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    mask["second.weight"][:, 5:] = False  # reads the first five only
    mask["head.weight"][:, 5:] = False
    small = assert_exact(model, skeletal.Mask(mask), X, multiple_of=4)
    widths = {layer.name: layer.outputs[1] for layer in small.report.layers}
    assert widths == {"first": 5, "second": 8, "head": 4}


def test_a_norm_without_epsilon_gets_no_zeros():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, eps=0.0), nn.Conv2d(8, 4, 1)).double()
    mask = {"0.weight": torch.ones(8, 3, 1, 1, dtype=torch.bool), "2.weight": torch.ones(4, 8, 1, 1, dtype=torch.bool)}
    mask["2.weight"][:, 5:] = False
    small = skeletal.compact(model, mask, X, multiple_of=4)
    assert small.model.get_submodule("0").out_channels == 5
    close(small.model(X), _masked(model, mask)(X), "output")


def _masked(model, mask):
    masked = copy.deepcopy(model)
    skeletal.Mask(mask).attach(masked)
    return masked


def test_widths_are_multiples_or_the_layers_own():
    model = convnet(width=12)
    mask = random_mask(model, 0.03)
    widths = [
        [layer.outputs[1] for layer in skeletal.compact(model, mask, images()[0], multiple_of=m).report.layers]
        for m in (1, 4, 8, 100)
    ]
    assert widths[1] == [-(-w // 4) * 4 if w != 10 else 10 for w in widths[0]]
    assert widths[3] == [12, 12, 24, 24, 10]
    assert all(w in (8, 12, 16, 24, 10) for w in widths[2])


def test_states_travel_both_ways():
    model = convnet(width=12)
    mask = skeletal.Mask(random_mask(model, 0.03))
    small = skeletal.compact(model, mask, images()[0], multiple_of=8)
    state = {name: t + 1 if name.startswith("8") else t.clone() for name, t in model.state_dict().items()}
    small.load_dense(state)
    index = small.slices["8.weight"][1]
    assert index is not None and (index < 0).any()
    assert not small.model.get_parameter("8.weight")[:, index < 0].any()
    for name, tensor in small.dense_state().items():
        assert torch.equal(tensor, state[name] * mask[name] if name in mask else state[name]), name


def test_the_report_counts_them():
    model = convnet(width=12)
    mask = random_mask(model, 0.03)
    small = skeletal.compact(model, mask, images()[0], multiple_of=8)
    assert "filled up" in str(small.report)
    assert "filled up" not in str(skeletal.compact(model, mask, images()[0]).report)
    kept = sum(layer.kept - layer.dropped for layer in small.report.layers)
    assert kept == sum(int(keep.sum()) for keep in small.mask.values())


@pytest.mark.parametrize("wrong", [0, -8, 2.5, True, "8"])
def test_multiples_are_whole_numbers(wrong):
    with pytest.raises(ValueError, match="multiple_of has to be a whole number of at least 1, not"):
        skeletal.compact(convnet(), random_mask(convnet(), 0.5), images()[0], multiple_of=wrong)


def test_export(tmp_path):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    torch.manual_seed(0)
    model = OURS["bottleneck"]()
    x = torch.randn(2, 3, 8, 8)
    mask = skeletal.Mask(random_mask(model, 0.1))
    small = skeletal.compact(model.eval(), mask, x, multiple_of=8)
    assert any(layer.padding for layer in small.report.layers)
    batch, other = torch.export.Dim("batch"), torch.randn(5, 3, 8, 8)
    exported = torch.export.export(small.model, (x,), dynamic_shapes=({0: batch},)).module()
    expected = _masked(model, mask)(other)
    assert torch.allclose(exported(other), expected, atol=1e-5)
    torch.onnx.export(
        small.model, (x,), tmp_path / "compact.onnx", dynamo=True, verbose=False, dynamic_shapes=({0: batch},)
    )
    session = reference.ReferenceEvaluator(str(tmp_path / "compact.onnx"))
    (found,) = session.run(None, {session.input_names[0]: other.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)

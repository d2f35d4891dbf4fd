"""What a compact network is like, what is left whole and why, and the ways back to the original."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import skeletal
from skeletal.compaction.slices import gather, scatter
from tests.cases import ZOO, convnet, images, random_mask
from tests.compaction.test_compact import X
from tests.engine.blocks import assert_exact, close, mask_of, network
from tests.unchanged import assert_same, everything_about


class Made(nn.Module):
    """Two convolutions and a linear layer around a function of the tests."""

    def __init__(self, function, between: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.one, self.two = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 3, padding=1, bias=False)
            self.between, self.head = between, nn.Linear(6, 2)
        self.function = function
        self.double()

    def forward(self, x):
        return self.head(self.function(self, x).mean((2, 3)))


def half(model: nn.Module) -> skeletal.Mask:
    """Half of the channels of every convolution read nothing, and nothing reads the first half of the last."""
    mask = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    for name, keep in mask.items():
        if keep.dim() == 4:
            keep[::2] = False
        if name == "head.weight":
            keep[:, :3] = False
    return skeletal.Mask(mask)


def plain(self, x):
    return F.relu(self.two(F.relu(self.one(x))))


def test_a_compact_network_is_an_ordinary_one():
    model = network(3)
    mask = mask_of(model, 3)
    small = skeletal.compact(model, mask, X)
    assert isinstance(small.model, torch.fx.GraphModule)
    assert small.model.training == model.training
    assert set(small.model.state_dict()) <= set(model.state_dict())
    again = copy.deepcopy(small.model).eval()
    small.model.eval()
    other = torch.randn(7, 3, 4, 4, dtype=torch.float64)  # another batch size
    with torch.no_grad():
        assert torch.equal(again(other), small.model(other))
        exported = torch.export.export(small.model, (X,)).module()
        close(exported(X), small.model(X), "exported")
    masked = copy.deepcopy(model).eval()
    mask.attach(masked)
    close(small.model(other), masked(other), "another batch size")
    for node in small.model.graph.nodes:
        if node.op == "call_module":
            assert node.meta["shape"][0] == len(X)


def test_the_callers_model_stays_as_it_is():
    model = network(5)
    model(X).sum().backward()
    before = everything_about(model)
    skeletal.compact(model, mask_of(model, 5), X)
    assert_same(everything_about(model), before)


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_network_comes_back(name):
    build, batches = ZOO[name]
    model, batch = build().eval(), batches()[0]
    mask = skeletal.Mask(random_mask(model, 0.2))
    small = skeletal.compact(model, mask, batch)
    masked = copy.deepcopy(model)
    mask.attach(masked)
    run = (lambda m: m(**batch)["logits"]) if isinstance(batch, dict) else (lambda m: m(batch[0]))
    for other in (small.model, small.to_dense()):
        assert torch.allclose(run(other), run(masked), atol=1e-5)
    mask.check(small.to_dense())


def test_channels_stay_last_in_memory():
    model = convnet().to(memory_format=torch.channels_last)
    small = skeletal.compact(model, random_mask(model, 0.05), images()[0])
    weight = small.model.get_parameter("3.weight")
    assert weight.shape != model[3].weight.shape
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_modes_of_parts_are_kept():
    model = convnet().train()
    model[1].eval()
    small = skeletal.compact(model, random_mask(model, 0.5), images()[0])
    for found in (small.model, small.to_dense()):
        assert found.training and found.get_submodule("3").training and not found.get_submodule("1").training


def functional_dropout(self, x):
    return self.two(F.dropout(F.relu(self.one(x)), 0.5, self.training))


def test_functions_follow_the_mode():
    model = Made(functional_dropout)
    small = skeletal.compact(model, half(model), X)
    assert small.report.whole is None and small.model.get_submodule("one").out_channels == 3
    small.model.train()
    assert not torch.equal(small.model(X), small.model(X))
    small.model.eval()
    assert torch.equal(small.model(X), small.model(X))


def reads_a_buffer(self, x):
    shift = self.between.running_var * 2
    return F.relu(self.two(F.relu(self.one(x))) * shift[0])


def changed_in_place(self, x):
    x = self.one(x)
    y = F.relu_(x)
    return F.relu(self.two(y) * x)  # x has been changed, too


def summed_with_itself(self, x):
    x = F.relu(self.one(x))
    return F.relu(self.two(x + x) * 2 - x / 2)


def resized(self, x):
    small = F.avg_pool2d(F.relu(self.one(x)), 2)
    assert small.dim() is not None and small.dtype is not None
    return F.relu(self.two(F.interpolate(small, size=x.shape[2:], mode="bilinear"))) * small.size(-1)


def reshaped(self, x):
    x = F.relu(self.one(x))
    n, c, h, w = x.shape
    x = x.view(n, c, h * w).unsqueeze(-1).squeeze(3).reshape(n, 6, -1, 1)
    return F.relu(self.two(x.view(n, c, -1, w)))


@pytest.mark.parametrize("function", [plain, reads_a_buffer, changed_in_place, summed_with_itself, reshaped, resized])
def test_graphs_that_are_cut(function):
    model = Made(function, nn.BatchNorm2d(6))
    small = assert_exact(model, half(model), X)
    assert not small.report.held
    assert small.report.macs[1] < small.report.macs[0]


def softmax(self, x):
    return F.relu(self.two(F.relu(self.one(x)).softmax(1)))


def twice(self, x):
    return self.two(self.two(F.relu(self.one(x))))


def shuffled(self, x):
    x = F.relu(self.one(x))
    n, c, h, w = x.shape
    return self.two(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def weight_read(self, x):
    return F.relu(self.two(F.relu(self.one(x)))) * self.two.weight.mean()


def scaled_by_width(self, x):
    x = F.relu(self.one(x))
    return self.two(x / x.size(1))


class Double(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def through(self, x):
    return F.relu(self.two(self.between(F.relu(self.one(x)))))


@pytest.mark.parametrize(
    ("function", "between", "reason"),
    [
        (softmax, None, "softmax"),
        (twice, None, "two is called more than once"),
        (shuffled, None, "view"),
        (weight_read, None, "two shares its parameters or buffers"),
        (scaled_by_width, None, "size"),
        (through, Double(6, 6, 1), "conv2d"),
        (through, nn.utils.parametrizations.spectral_norm(nn.Conv2d(6, 6, 1)), "Parametrized"),
        (through, nn.GroupNorm(2, 6), "GroupNorm"),
        (through, nn.LocalResponseNorm(2), "LocalResponseNorm"),
    ],
)
def test_what_is_not_known_is_left_whole(function, between, reason):
    model = Made(function, between).eval()
    mask = half(model)
    small = skeletal.compact(model, mask, X)
    assert any(reason in held for held in small.report.held), small.report.held
    assert f"left whole: {small.report.held[0]}" in str(small.report)
    masked = copy.deepcopy(model)
    mask.attach(masked)
    close(small.model(X), masked(X), "output")


def test_layers_with_hooks_are_left_whole():
    model = Made(plain)
    model.one.register_forward_hook(lambda module, args, output: output + 1)
    small = skeletal.compact(model, half(model), X)
    assert small.report.held == ("one has hooks",)


def depends_on_data(self, x):
    return self.two(self.one(x)) if x.sum() > 0 else self.one(x)


def depends_on_mode(self, x):
    return self.two(self.one(x)) if self.training else self.one(x)


def changes_a_view(self, x):
    x = self.one(x)
    x.flatten(2).relu_()
    return self.two(x)


def writes_a_buffer(self, x):
    self.between.running_mean += 1
    return self.two(self.one(x))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (writes_a_buffer, "writes to between.running_mean itself"),
        (depends_on_data, "torch.fx cannot trace it: TraceError"),
        (depends_on_mode, "another one in train mode"),
        (changes_a_view, "changes in place"),
    ],
)
def test_networks_that_cannot_be_traced_come_back_whole(function, reason):
    model = Made(function, nn.BatchNorm2d(6))
    mask = half(model)
    small = skeletal.compact(model, mask, X)
    assert reason in str(small.report) and str(small.report).startswith("left whole, because")
    assert type(small.model) is Made and skeletal.Mask(small.mask) == mask
    mask.check(small.model)
    close(small.model(X), small.to_dense()(X), "output")
    small.load_dense(model.state_dict())
    mask.check(small.to_dense())


def test_values_travel_both_ways():
    model = convnet()
    mask = skeletal.Mask(random_mask(model, 0.05))
    small = skeletal.compact(model, mask, images()[0])
    assert small.model.get_submodule("0").out_channels < 8
    state = {name: tensor + 1 if name.startswith("8") else tensor for name, tensor in model.state_dict().items()}
    small.load_dense(state)
    dense = small.dense_state()
    for name, tensor in state.items():
        expected = tensor * mask[name] if name in mask else tensor
        assert torch.equal(dense[name], expected), name
    inside = gather(state, small.slices)
    assert inside["8.weight"].shape == small.model.get_parameter("8.weight").shape
    assert_same(scatter(inside, small.slices, state), dict(state))
    moved = {name: tensor.clone() for name, tensor in state.items()}
    moved["1.bias"] += 1
    with pytest.raises(skeletal.MaskError, match=r"1.bias\[\d\] is not 0 in this state"):
        small.load_dense(moved)
    with pytest.raises(RuntimeError, match="Missing key"):
        small.load_dense({"1.bias": state["1.bias"]})


def test_a_mask_of_another_model():
    with pytest.raises(skeletal.MaskError, match="belongs to another model"):
        skeletal.compact(convnet(), random_mask(convnet(width=4), 0.5), images()[0])
    with pytest.raises(ValueError, match="does not run on this example"):
        skeletal.compact(convnet(), random_mask(convnet(), 0.5), torch.randn(2, 5, 8, 8))


def test_the_report_tells_what_happened():
    model = convnet()
    small = skeletal.compact(model, random_mask(model, 0.05), images()[0])
    kept = sum(layer.kept for layer in small.report.layers)
    dropped = sum(layer.dropped for layer in small.report.layers)
    left = sum(int(keep.sum()) for keep in small.mask.values())
    assert kept - dropped == left
    text = str(small.report)
    assert f"weights dropped as dead: {dropped:,} of {kept:,} kept" in text and "8 > " in text
    for layer in small.report.layers:
        before, after = layer.outputs
        assert before - after == layer.removed_zero + layer.removed_unread


def test_export_to_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    model = network(8).float()
    small = skeletal.compact(model, mask_of(model, 8), X.float())
    small.model.eval()
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        small.model, (X.float(),), tmp_path / "compact.onnx", dynamo=True, verbose=False, dynamic_shapes=({0: batch},)
    )
    session = reference.ReferenceEvaluator(str(tmp_path / "compact.onnx"))
    other = torch.randn(5, 3, 4, 4)
    (found,) = session.run(None, {session.input_names[0]: other.numpy()})
    assert torch.allclose(torch.from_numpy(found), small.model(other), atol=1e-5)

"""What a graph of operations would lose: the compact and the compiled network do as the masked one does."""

import copy
import pickle
import random

import pytest
import torch
from torch import fx, nn

import skeletal
from tests.cases import random_mask
from tests.compaction.habits import KINDS, PARTS, TRACED, WHOLE, Base, Force
from tests.engine.scored import early
from tests.unchanged import assert_same, everything_about

__all__ = ["early"]

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()


def prepared(kind):
    torch.manual_seed(1)
    model = KINDS[kind]().double()
    mask = skeletal.Mask(random_mask(model, 0.5))
    masked = copy.deepcopy(model)
    mask.attach(masked)
    return model, mask, masked


def steps(network, count=3):
    """Outputs, gradients' sums and random draws of a few training steps, then the output in eval mode."""
    found, optimizer = [], torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network.train()
    for step in range(count):
        torch.manual_seed(step)
        random.seed(step)
        x = X.clone().requires_grad_()
        out = network(x)
        optimizer.zero_grad()
        whole = torch.cat([part.flatten() for part in (out if isinstance(out, tuple) else (out,))])
        (whole**2).mean().backward()
        optimizer.step()
        found += [whole.detach(), x.grad if x.grad is not None else torch.zeros_like(x), torch.rand(1), random.random()]
    network.eval()
    with torch.no_grad():
        out = network(X)
    return [*found, *(out if isinstance(out, tuple) else (out,))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["compact", "dense", "sparse"])
def test_trains_as_the_masked_network(kind, way):
    model, mask, masked = prepared(kind)
    before = everything_about(model)
    if way == "compact":
        small = skeletal.compact(model, mask, X)
        network, keep = small.model, small.mask
        skeleton = skeletal.Mask(keep).attach(network)
    else:
        network = skeletal.compile(model, mask, X, path=way)
    assert_same(before, everything_about(model))
    for one, two in zip(steps(masked), steps(network), strict=True):
        torch.testing.assert_close(torch.as_tensor(two), torch.as_tensor(one), rtol=1e-9, atol=1e-11)
    masked.train(), network.train()
    dense = small.to_dense() if way == "compact" else network.to_dense()
    for (name, one), two in zip(masked.state_dict().items(), dense.state_dict().values(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-10, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(dense.eval()(X), masked.eval()(X), rtol=1e-9, atol=1e-11)
    if way == "compact":
        skeleton.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_says_what_was_kept_whole(kind):
    model, mask, _ = prepared(kind)
    small = skeletal.compact(model, mask, X)
    if kind in WHOLE:
        assert small.report.whole is not None and type(small.model) is type(model)
    elif kind in PARTS:
        assert isinstance(small.model, fx.GraphModule)
        assert any(held.startswith("part ") and held.endswith("kept whole") for held in small.report.held)
    elif kind in TRACED:
        assert small.report.whole is None and not any("kept whole" in held for held in small.report.held)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Inference", "enters inference mode"),
        ("Island", "has an autocast region"),
        ("OwnFunction", "applies an autograd.Function"),
        ("skipping", "part draws random numbers"),
        ("pythons", "part draws random numbers"),
        ("storing", "part writes to seen itself"),
        ("Patched", "two has a forward() of its own"),
        ("straight_through", "part applies an autograd.Function"),
        ("asking", "part cannot be traced"),
        ("by_mode", "part does other operations in train mode"),
        ("island", "part has an autocast region"),
        ("asking_autocast", "part does other operations under autocast"),
        ("Optional", "is another one with other optional arguments"),
    ],
)
def test_by_name(kind, reason):
    model, mask, _ = prepared(kind)
    assert reason in str(skeletal.compact(model, mask, X).report)


def test_an_option_that_the_example_has_not():
    model, mask, masked = prepared("Optional")
    keep = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < 0.5
    for example, other in (((X, None), (X, keep)), (({"x": X, "keep": keep}), (X,))):
        for network in (skeletal.compact(model, mask, example).model, skeletal.compile(model, mask, example).network):
            torch.testing.assert_close(network(*other), masked(*other))
            torch.testing.assert_close(network(X, None, True), masked(X, None, True))


@pytest.mark.parametrize("reads", ["keep is None", "twice is True", "twice is False"])
def test_options_are_asked_for_one_by_one(reads):
    def forward(self, x, keep=None, twice=False):
        return Base.forward(self, x) * (2 if eval(reads) else 3)

    kind = type("Asking", (Base,), {"forward": forward})
    model, _, _ = prepared("Base")
    model.__class__ = kind
    report = skeletal.compact(model, skeletal.Mask(random_mask(model, 0.5)), X).report
    assert report.whole == "its forward pass is another one with other optional arguments"


def test_asked_for_autocast_under_autocast():
    torch.manual_seed(1)
    model = KINDS["asking_autocast"]()
    mask = skeletal.Mask(random_mask(model, 0.5))
    small, x = skeletal.compact(model, mask, X.float()).model, X.float()
    mask.attach(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(small(x), model(x))


@pytest.mark.parametrize("path", ["auto", "sparse"])
def test_a_network_that_differentiates_itself(path):
    """It does not run without gradients; and kernels have no second derivative."""
    torch.manual_seed(1)
    model = Force().double()
    mask = skeletal.Mask(random_mask(model, 0.5))
    fast = skeletal.compile(model, mask, X, path=path)
    assert skeletal.diagnose(model, mask, X).effective
    mask.attach(model)
    outputs = [network(X) for network in (model, fast)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(fast.network.one.weight.grad, model.one.weight.grad)


@pytest.mark.parametrize("way", ["compact", "compile"])
def test_an_attribute_that_nobody_would_read_is_refused(way):
    model = nn.ModuleDict({"part": KINDS["Tempered"]()})
    model = _Calling(model["part"]).double()
    mask = skeletal.Mask(random_mask(model, 0.5))
    network = skeletal.compact(model, mask, X).model if way == "compact" else skeletal.compile(model, mask, X)
    inside = network if way == "compact" else network.network
    for copied in (network, copy.deepcopy(network)):
        with pytest.raises(AttributeError, match="`scale` would not be read"):
            copied.scale = 2.0
    for copied in (inside, copy.deepcopy(inside)):
        with pytest.raises(AttributeError, match="`temperature` would not be read"):
            copied.part.temperature = 2.0
    inside.part.own = network.own = 1  # what the original has not is the caller's business


class _Property(Base):
    """Has properties that cannot be read, or not without effect, as a LightningModule outside of its trainer."""

    reads = 0

    @property
    def trainer(self):
        raise RuntimeError("not attached to a trainer")

    @property
    def counted(self):
        self.reads += 1
        return self.reads


@pytest.mark.parametrize("way", ["compact", "compile", "sparse", "channels"])
def test_properties_are_not_run(early, way):
    torch.manual_seed(1)
    model = _Property().double()
    batches = [(X, torch.zeros(len(X), dtype=torch.long))]
    mask = skeletal.Mask(random_mask(model, 0.5))
    if way in ("compact", "compile"):
        network = skeletal.compact(model, mask, X).model if way == "compact" else skeletal.compile(model, mask, X)
        mask.attach(model)
        torch.testing.assert_close(network(X), model(X))
    else:
        options = {"engine": "sparse"} if way == "sparse" else {"pattern": "channels"}
        found = skeletal.prune(model, batches, density=0.4, steps=2, **options)
        assert found.density < 0.5 and found.metadata.get("why_dense") is None
    assert model.reads == 0


class _Calling(nn.Module):
    def __init__(self, part) -> None:
        super().__init__()
        self.part, self.scale = part, 1.0

    def forward(self, x):
        return self.part(x) * self.scale


@pytest.mark.parametrize("way", ["compact", "dense", "sparse"])
def test_an_error_leaves_gradients_on(way):
    model, mask, _ = prepared("NoGrad")
    network = skeletal.compact(model, mask, X).model if way == "compact" else skeletal.compile(model, mask, X, path=way)
    with pytest.raises((RuntimeError, ValueError)):
        network(X[:, :2])
    assert torch.is_grad_enabled() and network(X).requires_grad


def test_hooks_on_gradients_stay_behind_with_a_warning():
    model, mask, _ = prepared("Base")
    skeleton = mask.attach(model)
    skeletal.compact(model, mask, X)  # the skeleton's own say nothing
    model.one.bias.register_hook(lambda gradient: gradient * 0)
    model.head.bias.register_post_accumulate_grad_hook(lambda parameter: None)
    for function in (skeletal.compact, skeletal.compile):
        with pytest.warns(UserWarning, match=r"hooks on the gradients of one\.bias, head\.bias stay"):
            function(model, mask, X)
    skeleton.detach()


def test_gradients_stay_off_where_the_caller_has_switched_them_off():
    model, mask, _ = prepared("NoGrad")
    for network in (skeletal.compact(model, mask, X).model, skeletal.compile(model, mask, X, path="sparse")):
        with torch.no_grad():
            assert not network(X).requires_grad and not torch.is_grad_enabled()
        assert network(X).requires_grad and torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["Base", "NoGrad", "NoGradInside"])
def test_pickled(kind):
    model, mask, _ = prepared(kind)
    small = skeletal.compact(model, mask, X).model
    again = pickle.loads(pickle.dumps(small))
    for network in (small, again):
        network(X).square().mean().backward()
    for (name, one), two in zip(small.named_parameters(), again.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        assert one.grad is None or torch.equal(one.grad, two.grad)


def test_hooks_before_compiling():
    calls = []
    for path in ("norm", "two", ""):
        model, mask, masked = prepared("Base")
        for network in (model, masked):
            network.get_submodule(path).register_forward_hook(lambda module, args, out: calls.append(1) or out * 2)
        expected = masked(X)
        for network in (skeletal.compact(model, mask, X).model, skeletal.compile(model, mask, X, path="sparse")):
            calls.clear()
            torch.testing.assert_close(network(X), expected)
            assert calls == [1]


@pytest.mark.parametrize("path", ["one", "norm", "two", "head"])
def test_hooks_after_compiling(path):
    model, mask, masked = prepared("Base")
    fast = skeletal.compile(model, mask, X, path="sparse")
    plain = masked(X)
    seen = []
    handles = [
        network.get_submodule(path).register_forward_hook(
            lambda module, args, out: seen.append(tuple(out.shape)) or 2 * out
        )
        for network in (masked, fast.network)
    ]
    torch.testing.assert_close(fast(X), masked(X))
    assert len(seen) == 2
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(fast(X), plain)


def test_a_hook_that_would_never_run_is_refused():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Flatten(), nn.Linear(144, 2)).double()
    mask = skeletal.Mask(random_mask(model, 0.5))
    for network in (skeletal.compact(model, mask, X).model, skeletal.compile(model, mask, X, path="sparse").network):
        with pytest.raises(RuntimeError, match="would never run"):
            network.get_submodule("0").register_forward_hook(print)


def test_an_example_of_one():
    model, mask, masked = prepared("Base")
    assert skeletal.compact(model, mask, X[:1]).report.whole is None
    torch.testing.assert_close(skeletal.compile(model, mask, X[:1], path="sparse").eval()(X), masked.eval()(X))


def test_a_graph_that_differs_is_not_taken(monkeypatch):
    """The comparison is what catches habits that nobody has thought of."""
    monkeypatch.setattr(Base, "forward", lambda self, x: self.head(self.body(x).mean((2, 3))) * HIDDEN[0])
    model, mask, _ = prepared("Base")
    monkeypatch.setattr("skeletal.compaction.tracing.trace.one_graph", _graph_of_something_else)
    assert "differs" in str(skeletal.compact(model, mask, X).report.whole)


HIDDEN = [1.0]


def _graph_of_something_else(model):
    graph = fx.symbolic_trace(model).graph
    for node in graph.nodes:
        node.meta["owner"] = ""
        if node.op == "call_function" and node.args[-1] == 1.0:
            node.args = (node.args[0], 1.01)
    return graph

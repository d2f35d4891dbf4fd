"""The matrix unit's kernels, against convolutions in float64 and against the kernels for single weights."""

import copy
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import skeletal
from skeletal.engine.codegen import amx
from skeletal.engine.modules.blocked import to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import SparseConv2d, SparseLinear
from skeletal.engine.ops.affine import Affine
from skeletal.engine.ops.calls import run_convolution, run_gradients
from skeletal.engine.ops.launch_args import launch_args
from skeletal.engine.plan import plan as plans
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid, pack, unpack
from skeletal.engine.plan.plan import ConvPlan
from skeletal.engine.plan.weight_blocks import SIDE
from tests.engine.sparse_cases import Case, assert_clean, blocked_as, cases, rubbish, threads

HALF = torch.bfloat16
WIDE = Case(Shape((1, 1), (1, 1), (1, 1), 1, (3, 3)), 37, 35, 67, 6, 9, "half", 3)

needs_unit = pytest.mark.skipif(not amx.available(), reason="no matrix unit")


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def some_threads(request):
    with threads(request.param):
        yield


@pytest.fixture
def always(monkeypatch, tmp_path):
    """Every layer goes to the matrix unit that can."""
    monkeypatch.setattr(plans, "_FULL", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@st.composite
def wide_cases(draw):
    """Channels that fill a side of a square, one more, and several."""
    case = draw(cases())
    groups = case.shape.groups
    inputs, outputs = (groups * draw(st.sampled_from([1, 7, 16, 31, 32, 33, 65])) for _ in "io")
    return Case(case.shape, case.examples, inputs, outputs, case.height, case.width, case.kept, case.seed)


def planned(case):
    """Tables for the matrix unit, however little is kept."""
    ahead, back = case.shape.halos(case.height, case.width)
    target = MapGrid(*case.shape.output(case.height, case.width), back)
    plan = ConvPlan(case.mask, case.shape, MapGrid(case.height, case.width, ahead), target, in_parts=False)
    with mock.patch.object(plans, "_FULL", 0.0):
        assert plan.is_full == (plan.kept > 0)
    return plan


def near(found, truth, size, count):
    """Rounded once to bfloat16, and `count` times to float32 on the way, where numbers of that size are added up."""
    off = (found.double() - truth).abs()
    allowed = 2**-8 * truth.abs() + 2**-22 * (count + 8) * size + 1e-30
    assert (off <= allowed).all(), f"off by {(off / allowed).max():.3g} of what rounding allows"


@needs_unit
@given(wide_cases(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_is_a_convolution(case, affine, added, relu, before):
    """All that may come before and after, forward and back; the truth knows rounded weights and maps."""
    s = case.shape
    plan = planned(case)
    weight = case.layer.weight.detach() * case.mask
    weight = weight.to(HALF).double()
    x, other = case.images.to(HALF), case.random(case.examples, case.outputs, plan.target.height, plan.target.width)
    other, passed = other.to(HALF), case.random(1, *case.images.shape)[0].to(HALF)
    scale, shift = case.random(case.outputs).float(), case.random(1, case.outputs)[0].float()
    ready = None
    if before:
        factor, constant = case.random(2, case.inputs).float().numpy()
        ready = Affine(factor, constant, True)
    packed, values = pack(x, plan.source), weight[case.mask].float()
    after = {"scale": scale, "shift": shift} if affine else {}
    with rubbish():
        out = run_convolution(
            plan, packed, values, case.examples,
            affine=ready, **after, other=pack(other, plan.target) if added else None, relu=relu,
        )  # fmt: skip
        grad_x, grad_values = run_gradients(
            plan, pack(other, plan.target), packed, values, case.examples,
            affine=ready, passed=pack(passed, plan.source) if added else None, relu_backward=relu,
        )  # fmt: skip
    assert_clean(out, plan.target, case.examples)
    assert_clean(grad_x, plan.source, case.examples)

    read = x.float()
    if ready is not None:
        a, b = (torch.from_numpy(numbers)[:, None, None] for numbers in (ready.scale, ready.shift))
        read = torch.addcmul(b.expand_as(read), read, a).relu()
    read = read.to(HALF).double().requires_grad_()
    leaf = weight.clone().requires_grad_()
    rest = s.stride, s.padding, s.dilation, s.groups
    made = F.conv2d(read, leaf, None, *rest)
    sizes = F.conv2d(read.detach().abs(), weight.abs(), None, *rest)
    truth, size = made.detach(), sizes
    if affine:
        by, plus = scale.double()[:, None, None], shift.double()[:, None, None]
        truth, size = truth * by + plus, sizes * by.abs() + plus.abs()
    if added:
        truth, size = truth + other.double(), size + other.double().abs()
    slack = 0.1 if before else 0.0  # what is read may have been rounded another way, by an ulp
    count = case.inputs * s.kernel[0] * s.kernel[1] + slack * 2**18
    near(unpack(out, plan.target, case.examples), truth.relu() if relu else truth, size, count)

    slope = other.double()
    of_read, grad_weight = torch.autograd.grad(made, (read, leaf), slope)
    sizes = torch.autograd.grad(F.conv2d(read, leaf.abs(), None, *rest), read, slope.abs())[0].abs()
    if added:
        of_read, sizes = of_read + passed.double(), sizes + passed.double().abs()
    if relu:
        of_read = of_read * (x > 0)
    near(unpack(grad_x, plan.source, case.examples), of_read, sizes, case.outputs * s.kernel[0] * s.kernel[1])
    sizes = torch.autograd.grad(F.conv2d(read.detach().abs(), leaf, None, *rest), leaf, slope.abs())[0]
    pixels = case.examples * plan.target.height * plan.target.width
    near(grad_values, grad_weight[case.mask], sizes[case.mask], pixels + slack * 2**18)


@needs_unit
@pytest.mark.parametrize("relu", [True, False], ids=["relu", ""])
@pytest.mark.parametrize("added", [True, False], ids=["added", ""])
@pytest.mark.parametrize("stride", [1, 2])
def test_norm_and_addition_are_as_near_as_without_the_unit(some_threads, monkeypatch, relu, added, stride):
    """What batch norm does on the way, forward and back, with the statistics that it takes; the truth is in float32."""
    outcomes = {}
    for way, half, least in (("truth", False, 2.0), ("without", True, 2.0), ("with", True, 0.0)):
        monkeypatch.setattr(plans, "_FULL", least)
        torch.manual_seed(0)
        first = SparseConv2d(nn.Conv2d(3, 35, 1), torch.ones(35, 3, 1, 1, dtype=torch.bool))
        sparse = SparseConv2d(nn.Conv2d(35, 67, 3, stride, 1, bias=False), WIDE.mask)
        for layer in (first, sparse):  # of which the unit would take rounded ones
            layer.values.data = layer.values.data.to(HALF).float()
        norms = nn.BatchNorm2d(35), nn.BatchNorm2d(67)
        size = 37, 67, *sparse.geometry.output(6, 9)
        x, other, slope = (torch.randn(size_).to(HALF).float() for size_ in ((37, 3, 6, 9), size, size))
        x.requires_grad_(), other.requires_grad_()
        with rubbish(), torch.autocast("cpu", HALF):
            block = blocked_as(1, torch.float32, half)
            middle, _ = ConvNorm(first, norms[0], 1, relu=True)(block(x))
            out, _ = ConvNorm(sparse, norms[1], 1, relu)(middle, block(other) if added else None)
            assert_clean(out.storage, out.grid, 37)
            of = [x, sparse.values, first.values, *norms[1].parameters(), *([other] if added else [])]
            images = to_images(out)
            found = torch.autograd.grad(images, of, slope.to(images.dtype))
        outcomes[way] = [images.detach(), *found, norms[1].running_mean, norms[1].running_var]
    for number, (truth, one, two) in enumerate(zip(*outcomes.values(), strict=True)):
        without, with_ = (float((found - truth).norm() / truth.norm()) for found in (one, two))
        assert with_ < 1.5 * without + 0.003, f"{number}: {with_} and {without}"


@needs_unit
@pytest.mark.parametrize("size", [(1, 1, 5), (3, 4, 4), (40, 2, 2)], ids=str)
def test_any_number_of_threads_gives_the_same(size):
    """Also where there is less than a block for each, and output channels are shared."""
    case = Case(Shape((1, 1), (1, 1), (1, 1), 1, (3, 3)), size[0], 40, 100, *size[1:], "half", 1)
    plan, found = planned(case), []
    values, x = case.layer.weight.detach()[case.mask].float(), pack(case.images.to(HALF), planned(case).source)
    slope = pack(case.random(1, size[0], 100, *size[1:])[0].to(HALF), plan.target)
    for count in (1, 2, 3):
        with threads(count), rubbish():
            out = run_convolution(plan, x, values, size[0])
            found.append((out, *run_gradients(plan, slope, x, values, size[0])))
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0]) and torch.equal(found[0][1], other[1])
        assert torch.allclose(found[0][2], other[2], rtol=1e-4, atol=1e-4)  # sums of threads are added last


@needs_unit
def test_gradients_that_nobody_asks_for():
    plan = planned(WIDE)
    values, x = WIDE.layer.weight.detach()[WIDE.mask].float(), pack(WIDE.images.to(HALF), plan.source)
    slope = pack(WIDE.random(1, 37, 67, 6, 9)[0].to(HALF), plan.target)
    both = run_gradients(plan, slope, x, values, 37)
    grad_x, none = run_gradients(plan, slope, x, values, 37, wanted=(True, False))
    assert none is None and torch.equal(grad_x, both[0])
    none, grad_values = run_gradients(plan, slope, x, values, 37, wanted=(False, True))
    assert none is None and torch.equal(grad_values, both[1])


class Wide(nn.Module):
    """Every kind of layer that may go to the unit."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 40, 3, padding=1, bias=False), nn.BatchNorm2d(40), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(40, 33, 1, bias=False), nn.BatchNorm2d(33), nn.ReLU(),
            nn.Conv2d(33, 33, 3, 2, 1, bias=False), nn.BatchNorm2d(33), nn.ReLU(),
            nn.Conv2d(33, 70, 1, bias=False), nn.BatchNorm2d(70),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(40, 70, 1, 2, bias=False), nn.BatchNorm2d(70))
        self.last = nn.Conv2d(70, 64, 3, padding=1, groups=2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 50), nn.ReLU(), nn.Linear(50, 10))

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(F.relu(self.block(x) + self.shortcut(x))))


@needs_unit
def test_trains_as_without_the_unit(always, monkeypatch, some_threads):
    torch.manual_seed(0)
    model = Wide()
    mask = skeletal.Mask({n: torch.rand(p.shape) < 0.5 for n, p in model.named_parameters() if p.dim() > 1})
    x, y = torch.randn(40, 3, 8, 8), torch.randint(10, (40,))
    losses = {}
    for least in (0.0, 2.0):
        monkeypatch.setattr(plans, "_FULL", least)
        fast = skeletal.compile(copy.deepcopy(model), mask, x, path="sparse", dtype=HALF)
        optimizer = torch.optim.SGD(fast.parameters(), 0.05, momentum=0.9)
        losses[least] = []
        for _ in range(20):
            with torch.autocast("cpu", HALF):
                loss = F.cross_entropy(fast(x).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[least].append(loss.item())
        fast.eval()
        with torch.no_grad(), torch.autocast("cpu", HALF):
            losses[least].append(float(F.cross_entropy(fast(x).float(), y)))
    assert losses[0.0][19] < losses[0.0][0] / 2
    assert losses[0.0] == pytest.approx(losses[2.0], rel=0.05, abs=0.02)


def results(network, x, half):
    """Output, and gradients of the first and the last layer."""
    with torch.autocast("cpu", HALF, enabled=half):
        out = network(x)
    (out.float() if half else out).square().sum().backward()
    parameters = dict(network.named_parameters())
    return [
        t.double().flatten() for t in (out.detach(), *(parameters[n].grad for n in ("stem.0.weight", "head.3.weight")))
    ]


@pytest.mark.parametrize("half", [True, False], ids=["bfloat16", "float32"])
def test_a_network_with_all_its_weights(half, monkeypatch, tmp_path):
    """As near to float64 as torch is in the same precision: in bfloat16 each of the two rounds in its own way, and on
    the way back to the first layer one rounding comes to a tenth of the gradient, whoever makes it.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    off = {"fast": [], "torch": []}
    for seed in range(4):
        torch.manual_seed(seed)
        model = Wide()
        x = torch.randn(8, 3, 8, 8)
        fast = skeletal.compile(model, None, x, path="sparse", dtype=HALF if half else torch.float32)
        assert fast.mask.density == 1
        assert sum(p.numel() for p in fast.parameters()) == sum(p.numel() for p in model.parameters())
        truth = results(copy.deepcopy(model).double(), x.double(), half=False)
        for name, network in (("fast", fast), ("torch", model)):
            found = results(network, x, half)
            off[name].append([float((one - two).norm() / two.norm()) for one, two in zip(found, truth, strict=True)])
        for name, value in fast.to_dense().named_parameters():
            assert torch.equal(value, model.get_parameter(name)), name
    fast, reference = (torch.tensor(values).square().mean(0).sqrt() for values in off.values())
    assert (fast < 1.25 * reference + 1e-5).all(), f"{fast} from the truth, torch {reference}"


@needs_unit
def test_weights_are_rounded_as_under_autocast():
    layer = nn.Linear(64, 64, bias=False)
    sparse = SparseLinear(layer, torch.ones(64, 64, dtype=torch.bool))
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(HALF)
    with torch.autocast("cpu", HALF), torch.no_grad():
        assert torch.allclose(sparse(x).float(), layer(x).float(), rtol=2**-7, atol=1e-6)
        exact = x.double() @ layer.weight.to(HALF).double().T
    with torch.autocast("cpu", HALF), torch.no_grad():
        near(sparse(x), exact, x.double().abs() @ layer.weight.double().abs().T, 64)


def test_only_what_keeps_much_goes_there(monkeypatch):
    grid, shape = MapGrid(4, 4, 0), Shape((1, 1), (0, 0), (1, 1), 1, (1, 1))

    def full(kept, present=True):
        monkeypatch.setattr(amx, "available", lambda: present)
        mask = torch.zeros(2 * SIDE, SIDE, 1, 1, dtype=torch.bool)
        mask.view(-1)[:kept] = True
        return ConvPlan(mask, shape, grid, grid).is_full

    least = round(plans._FULL * SIDE * SIDE)
    assert full(least + 1) and not full(least - 1) and not full(0)
    assert full(SIDE * SIDE) and not full(SIDE * SIDE, present=False)
    assert not full(SIDE * SIDE + 1) or plans._FULL <= 0.5  # a second square, nearly empty
    monkeypatch.setattr(amx, "available", lambda: True)
    plan = ConvPlan(torch.ones(SIDE, SIDE, 1, 1, dtype=torch.bool), shape, grid, grid)
    assert plan.is_full and plan.weight_blocks.count == plan.weight_blocks_back.count == 1
    assert launch_args(plan, HALF).full and not launch_args(plan, torch.float32).full


def test_a_plan_in_blocks_holds_each_weight_once():
    mask = torch.rand(70, 40, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    grid = MapGrid(5, 5, 1)
    plan = ConvPlan(mask, Shape((2, 2), (1, 1), (1, 1), 1, (3, 3)), grid, MapGrid(3, 3, 1))
    for blocks in (plan.weight_blocks, plan.weight_blocks_back):
        assert sorted(blocks.order) == list(range(plan.kept))
        assert len(set(blocks.positions)) == plan.kept
        assert (blocks.positions // SIDE**2 == torch.arange(blocks.count).repeat_interleave(
            torch.from_numpy(blocks.starts).diff()).numpy()).all()  # fmt: skip
        assert blocks.pointers[0, 0] == 0 and blocks.pointers[-1, -1] == blocks.count
        assert (blocks.pointers[1:, 0] == blocks.pointers[:-1, -1]).all()

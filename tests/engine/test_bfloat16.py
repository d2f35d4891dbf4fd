"""Maps in bfloat16: kernels against the float32 ones, rounding against torch's, networks against its autocast."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import skeletal
from skeletal.engine.modules import blocked
from skeletal.engine.modules.blocked import Blocked, BlockedMaxPool, ToBlocks, to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.modules.layers import Sparse, SparseConv2d, SparseLinear
from skeletal.engine.ops.affine import Affine
from skeletal.engine.ops.calls import run_convolution, run_gradients
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid, pack, unpack
from skeletal.engine.plan.plan import ConvPlan
from tests.cases import Tokens, convnet, images, mlp, random_mask, tokens
from tests.engine.sparse_cases import Case, assert_clean, cases, close, rubbish, threads
from tests.engine.test_lower import NETS, Flattened, made

HALF = torch.bfloat16
SMALL = Case(Shape((1, 1), (1, 1), (1, 1), 1, (3, 3)), 37, 4, 6, 5, 7, "half", 3)
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 3.3895314e38, -1e-30, 1 + 2**-8, 1 + 3 * 2**-8]


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def autocast():
    return torch.autocast("cpu", HALF)


def same_bits(one, two):
    """Equal, with NaN at the same places and zeros of either sign alike."""
    assert one.dtype == two.dtype == HALF and one.shape == two.shape
    assert torch.equal(one.isnan(), two.isnan())
    assert torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0)), (one.float() - two.float()).abs().max()


def single(channels=1):
    """A 1x1 convolution of one weight for each channel."""
    grid = MapGrid(5, 9, 0)
    mask = torch.eye(channels, dtype=torch.bool)[:, :, None, None]
    return ConvPlan(mask, Shape((1, 1), (0, 0), (1, 1), 1, (1, 1)), grid, grid), grid


@pytest.mark.parametrize("factor", [1.0, 1 + 2**-9, -0.7, 1.0000001])
def test_kernels_round_as_torch_does(factor):
    """Tiles write whole vectors, the norm single numbers: both to the nearest, ties to even, NaN to NaN."""
    plan, grid = single()
    numbers = torch.randn(35, 1, 5, 9, generator=torch.Generator().manual_seed(0)).to(HALF)
    numbers.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)
    x = pack(numbers, grid)
    expected = (numbers.float() * factor).to(HALF)
    with rubbish():
        out = run_convolution(plan, x, torch.tensor([factor]), 35)
        norm = nn.BatchNorm2d(1, eps=0.0).eval()
        nn.init.constant_(norm.weight, factor)
        normed, _ = ConvNorm(None, norm, 0, relu=False)(Blocked(x, grid, 35))
    same_bits(unpack(out, grid, 35), expected)
    same_bits(to_images(normed), expected)
    assert_clean(normed.storage, grid, 35)


def read_through_a_window(numbers):
    """What kernels read of pairs of numbers, (2, n), that a window holds, in float32.

    The gradient of a weight is what it reads, where the gradient of the output is 1 for one example.
    """
    channels = numbers.shape[1]
    grid = MapGrid(1, 1, 0)
    plan = ConvPlan(
        torch.ones(1, channels, 1, 1, dtype=torch.bool), Shape((1, 1), (0, 0), (1, 1), 1, (1, 1)), grid, grid
    )
    stored = numbers.to(HALF)
    affine = Affine(np.ones(channels, np.float32), np.zeros(channels, np.float32), False)
    x, found = pack(stored.view(2, channels, 1, 1), grid), []
    for example in (0, 1):
        one = torch.zeros(2, 1, 1, 1, dtype=HALF)
        one[example] = 1
        values = torch.ones(channels)
        found.append(run_gradients(plan, pack(one, grid), x, values, 2, affine=affine, wanted=(False, True))[1])
    return stored.float(), torch.stack(found)


@given(st.integers(0, 10**6), st.sampled_from([1.0, 1e-30, 1e30]))
def test_pairs_in_windows_are_as_near_as_bfloat16(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(2, 300, generator=generator) * scale * torch.randint(0, 2, (2, 300), generator=generator)
    numbers[:, :4] = torch.tensor([[0.0, -0.0, -1.0, 2.0**-133], [-1.0, -2.0, 0.0, -3.0]])
    stored, found = read_through_a_window(numbers)
    large = stored.abs() >= torch.finfo(torch.float32).tiny
    assert torch.equal(found[0][large[0]], stored[0][large[0]])  # the lower half is exact
    assert (found[0][~large[0]] == 0).all() and (found[1][~large[1]] == 0).all()
    error = (found[1] - stored[1]).abs()[large[1]]
    spacing = 2.0 ** (torch.floor(torch.log2(stored[1][large[1]].abs())) - 7)
    assert (error <= spacing / 2).all()
    same_sign = torch.sign(found[1]) * torch.sign(stored[1])
    assert (same_sign[large[1]] == 1).all()


def test_pairs_in_windows_are_not_off_to_one_side():
    stored, found = read_through_a_window(torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0)))
    off = ((found[1] - stored[1]) / stored[1]).double()
    assert abs(off.mean()) <= 5 * off.std() / len(off) ** 0.5
    assert off.std() < 2**-8


def test_what_is_not_finite_stays_so_in_windows():
    special = torch.tensor(
        [[1.0, -1.0, 0.0, -0.0, 1.0, 1.0], [math.inf, -math.inf, math.inf, -math.inf, math.nan, -math.nan]]
    )
    for half in (1, 0):
        assert not read_through_a_window(special)[1][half].isfinite().any()
        special = special.flip(0)


def planned(case):
    ahead, back = case.shape.halos(case.height, case.width)
    source = MapGrid(case.height, case.width, ahead)
    target = MapGrid(*case.shape.output(case.height, case.width), back)
    return ConvPlan(case.mask, case.shape, source, target, in_parts=False)


@given(cases(), st.booleans(), st.booleans(), st.booleans())
def test_kernels_are_those_of_float32_on_rounded_maps(case, affine, added, relu):
    """The same sums in the same order, so the same numbers, rounded once."""
    plan = planned(case)
    values = case.layer.weight.detach()[case.mask].float()
    x = case.images.to(HALF)
    after = {"scale": case.random(case.outputs).float(), "shift": case.random(1, case.outputs)[0].float()}
    after = after if affine else {}
    other = case.random(case.examples, case.outputs, plan.target.height, plan.target.width).to(HALF)
    found = []
    with rubbish():
        for dtype in (HALF, torch.float32):
            beside = pack(other.to(dtype), plan.target)
            packed = pack(x.to(dtype), plan.source)
            out = run_convolution(
                plan, packed, values, case.examples, **after, other=beside if added else None, relu=relu
            )
            grad_x, grad_values = run_gradients(plan, beside, packed, values, case.examples, passed=packed)
            assert_clean(out, plan.target, case.examples)
            assert_clean(grad_x, plan.source, case.examples)
            found.append((out, grad_x, grad_values))
    half, full = found
    for i, grid in ((0, plan.target), (1, plan.source)):
        same_bits(unpack(half[i], grid, case.examples), unpack(full[i], grid, case.examples).to(HALF))
    assert half[2].dtype == torch.float32
    close(half[2] / case.examples, full[2] / case.examples, "weight gradient")


@pytest.mark.parametrize("convolved", [True, False], ids=["after a convolution", "alone"])
def test_statistics_are_of_what_is_stored(convolved):
    sparse = SparseConv2d(SMALL.layer.float(), SMALL.mask)
    channels = SMALL.outputs if convolved else SMALL.inputs
    norm = nn.BatchNorm2d(channels, momentum=1.0)
    x = Blocked(pack(SMALL.images.to(HALF), MapGrid(5, 7, 1)), MapGrid(5, 7, 1), 37)
    out, _ = ConvNorm(sparse if convolved else None, norm, 1, relu=False)(x)
    stored = unpack(out.raw if convolved else x.raw, out.grid, 37).double()
    assert stored.shape[1] == channels
    close(norm.running_mean, stored.mean((0, 2, 3)).float())
    close(norm.running_var, stored.var((0, 2, 3)).float())


def test_any_number_of_threads_gives_the_same():
    plan = planned(SMALL)
    values = SMALL.layer.weight.detach()[SMALL.mask].float()
    x = pack(SMALL.images.to(HALF), plan.source)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(run_convolution(plan, x, values, SMALL.examples))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("arguments", [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((3, 2), 2, (1, 0))], ids=str)
@pytest.mark.parametrize("examples", [1, 32, 35])
def test_max_pooling_with_ties_and_nan(arguments, examples):
    layer = nn.MaxPool2d(*arguments)
    numbers = torch.randint(-2, 3, (examples, 3, 7, 6), generator=torch.Generator().manual_seed(0)).to(HALF)
    ours, theirs = (numbers.clone().requires_grad_() for _ in range(2))
    with rubbish():
        out = BlockedMaxPool(layer, halo=1)(Blocked(pack_grad(ours, 0), MapGrid(7, 6, 0), examples))
        found, expected = to_images(out), layer(theirs)
        assert_clean(out.storage, out.grid, examples)
        same_bits(found, expected)
        slope = torch.randint(-3, 4, found.shape, generator=torch.Generator().manual_seed(1)).to(HALF)
        same_bits(*(torch.autograd.grad(y, x, slope)[0] for y, x in ((found, ours), (expected, theirs))))
    numbers.view(-1)[3::11] = float("nan")
    same_bits(
        to_images(BlockedMaxPool(layer, 1)(Blocked(pack(numbers, MapGrid(7, 6, 1)), MapGrid(7, 6, 1), examples))),
        layer(numbers),
    )


def pack_grad(images, halo):
    """The storage of images, with a way back for gradients."""
    with autocast():
        return ToBlocks(halo, torch.float32)(images).storage


@pytest.mark.parametrize("examples", [1, 31, 64])
def test_means_are_added_up_in_float32(examples):
    numbers = torch.full((examples, 2, 16, 16), 1.0).to(HALF).requires_grad_()  # sums of 256, past bfloat16's 8 bits
    with rubbish():
        x = Blocked(pack_grad(numbers, 1), MapGrid(16, 16, 1), examples)
        means = blocked.global_mean(x)
        (slope,) = torch.autograd.grad(means.sum(), numbers)
    same_bits(means, torch.ones(examples, 2, 1, 1).to(HALF))
    same_bits(slope, torch.full_like(slope, 1 / 256))


@pytest.mark.parametrize("relu", [True, False], ids=["relu", ""])
@pytest.mark.parametrize("added", [True, False], ids=["added", ""])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_convolution_norm_addition_relu(training, added, relu):
    """Maps and their gradients as in float32, to bfloat16; parameters, their gradients and statistics in float32."""
    outcomes = []
    for half in (True, False):
        layer = SMALL.layer.float()
        layer.bias = None if training else layer.bias  # whose gradient batch statistics make 0
        sparse = SparseConv2d(layer, SMALL.mask)
        norm = nn.BatchNorm2d(SMALL.outputs).train(training)
        numbers, other = (torch.randn(37, c, 5, 7, generator=torch.Generator().manual_seed(c)) for c in (4, 6))
        numbers, other = (tensor.to(HALF).float().requires_grad_() for tensor in (numbers, other))
        with rubbish(), autocast():
            block = ToBlocks(1, torch.float32, half)
            out, passed = ConvNorm(sparse, norm, 1, relu)(block(numbers), block(other) if added else None)
            assert out.storage.dtype == passed.storage.dtype == (HALF if half else torch.float32)
            slope = torch.sin(torch.arange(37 * 6 * 35.0)).view(37, 6, 5, 7)
            of = [numbers, *sparse.parameters(), *norm.parameters(), *([other] if added else [])]
            found = torch.autograd.grad(to_images(out), of, slope.to(out.storage.dtype))
            with torch.no_grad():
                at_once, _ = ConvNorm(sparse, norm.eval(), 1, relu)(block(numbers), block(other) if added else None)
        assert_clean(out.storage, out.grid, 37)
        assert_clean(at_once.storage, at_once.grid, 37)
        assert all(gradient.dtype == torch.float32 for gradient in found)
        statistics = [norm.running_mean, norm.running_var] if training else []
        outcomes.append([to_images(out).detach(), to_images(at_once), *found, *statistics])
    for number, (one, two) in enumerate(zip(*outcomes, strict=True)):
        distance = float((one - two).double().norm() / two.double().norm())
        assert distance < 0.05, f"{number}: {distance}"


def test_statistics_are_exact_to_float32():
    """Of maps far from 0, whose variance bfloat16 sums would lose."""
    numbers = (torch.randn(40, 2, 9, 9, generator=torch.Generator().manual_seed(0)) + 30).to(HALF)
    norm = nn.BatchNorm2d(2, momentum=1.0)
    with autocast():
        ConvNorm(None, norm, 1, relu=True)(ToBlocks(1, torch.float32)(numbers.float()))
    close(norm.running_mean, numbers.double().mean((0, 2, 3)).float(), "mean")
    close(norm.running_var, numbers.double().var((0, 2, 3)).float(), "variance")


@pytest.mark.parametrize("size", [(1, 7), (31, 7), (32, 7), (2, 40, 7), (0, 7)])
def test_linear_layer(size):
    dense = nn.Linear(7, 5)
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.4
    sparse = SparseLinear(dense, mask)
    dense.weight.data *= mask
    x = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(HALF).float()
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    with autocast():
        out = sparse(ours)
    expected = dense(theirs)
    assert out.dtype == HALF and out.shape == expected.shape
    assert torch.allclose(out.float(), expected, rtol=0.02, atol=0.02)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(HALF)
    found = torch.autograd.grad(out, (ours, sparse.values, sparse.bias), slope)
    wanted = torch.autograd.grad(expected, (theirs, dense.weight, dense.bias), slope.float())
    for one, two in zip(found, (wanted[0], wanted[1][mask], wanted[2]), strict=True):
        assert one.dtype == torch.float32 and torch.allclose(one, two, rtol=0.02, atol=0.1)


def test_layers_without_kept_weights():
    for layer in (nn.Conv2d(3, 4, 3, padding=1), nn.Linear(3, 4)):
        kind = SparseConv2d if isinstance(layer, nn.Conv2d) else SparseLinear
        sparse = kind(layer, torch.zeros_like(layer.weight, dtype=torch.bool))
        x = torch.ones(2, 3, 4, 4) if kind is SparseConv2d else torch.ones(2, 3)
        with autocast():
            out = sparse(x.requires_grad_())
        assert out.dtype == HALF and torch.equal(
            out[0].flatten(1).float() if out.dim() == 4 else out[:1].T.float(),
            layer.bias.detach().to(HALF).float()[:, None].expand(4, 16 if out.dim() == 4 else 1),
        )
        out.sum().backward()
        assert not x.grad.any() and sparse.values.numel() == 0


# Whole networks. The truth is the masked network in float64.


def step(network, x, half):
    """Output and gradients of a training step."""
    network.train().zero_grad()
    with torch.autocast("cpu", HALF, enabled=half):
        out = network(x)
    out = out.to(torch.float64 if not half else torch.float32)
    slope = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
    (out * slope).sum().backward()
    return out.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def distances(model, mask, x):
    """How far outputs and gradients are from the truth, relatively: of torch's autocast, of ours."""
    exact, dense = copy.deepcopy(model).double(), copy.deepcopy(model).float()
    mask.attach(exact), mask.attach(dense)
    fast = skeletal.compile(copy.deepcopy(model).float(), mask, x, path="sparse")
    truth, slopes = step(exact, x.double(), False)
    found = []
    sparse = {f"{name}.weight" for name in fast.sparse_layers()}
    theirs, ours = step(dense, x, True), step(fast, x, True)

    def vector(gradients, name):
        gradient = gradients[name].double()
        return gradient[mask[name]] if name in sparse and gradient.dim() > 1 else gradient.flatten()

    names = [  # whatever lost no channel
        name for name, gradient in ours[1].items()
        if name in slopes and vector(ours[1], name).shape == vector(slopes, name).shape
    ]  # fmt: skip
    assert len(names) > len(slopes) / 3
    true = torch.cat([vector(slopes, name) for name in names])
    for output, gradients in (theirs, ours):
        gradient = torch.cat([vector(gradients, name) for name in names])
        found.append(
            torch.stack([(output.double() - truth).norm() / truth.norm(), (gradient - true).norm() / true.norm()])
        )
    return found


@pytest.mark.parametrize("kind", NETS)
def test_no_less_precise_than_torchs_autocast(kind):
    """Over three networks of a kind together, as one alone may be lucky."""
    theirs = ours = torch.zeros(2, dtype=torch.float64)
    for seed in range(3):
        model, mask = made(kind, 0.5, seed)
        x = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        of_torch, of_ours = distances(model, mask, x)
        theirs, ours = theirs + of_torch, ours + of_ours
    assert (ours < 2 * theirs + 0.003).all(), f"{kind.__name__}: {ours / 3} against {theirs / 3}"
    assert (ours > 0).all()


@pytest.mark.parametrize("examples", [1, 31, 32, 33])
def test_other_batches_than_the_example(examples):
    model, mask = made(NETS[0])
    fast = skeletal.compile(model.float(), mask, torch.randn(3, 3, 6, 6), path="sparse").eval()
    x = torch.randn(examples, 3, 8, 5, generator=torch.Generator().manual_seed(0))
    dense = fast.to_dense().eval()
    with torch.no_grad(), autocast():
        out = fast(x)
    expected = dense(x).detach()
    assert out.dtype == HALF and float((out - expected).norm() / expected.norm()) < 0.03


def train(network, batches, optimizer, half=True):
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", HALF, enabled=half):
            loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def compiled(**options):
    torch.manual_seed(0)
    model = convnet()
    mask = skeletal.Mask(random_mask(model, 0.4, seed=0))
    batches = images(4, seed=0)
    return skeletal.compile(model, mask, batches[0], **options).train(), mask, batches


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)


def test_trains_as_in_float32_with_parameters_in_float32():
    losses = []
    for half in (True, False):
        fast, mask, batches = compiled(path="sparse")
        optimizer = sgd(fast)
        losses.append(train(fast, batches * 3, optimizer, half))
        mask.check(fast)
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in fast.parameters())
        assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in fast.buffers())
        assert all(s["momentum_buffer"].dtype == torch.float32 for s in optimizer.state.values())
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_maps_are_half_only_under_autocast():
    fast, _, batches = compiled(path="sparse")
    seen = []
    for module in fast.modules():
        if isinstance(module, ToBlocks):
            module.register_forward_hook(lambda *arguments: seen.append(arguments[2].storage.dtype))
    x = batches[0][0]
    outputs = [fast.eval()(x)]
    with autocast():
        outputs.append(fast(x))
    outputs.append(fast(x.to(HALF)))
    with torch.autocast("cpu", torch.float16):
        fast(x)
    assert seen == [torch.float32, HALF, HALF, torch.float32]
    assert [output.dtype for output in outputs] == [torch.float32, HALF, HALF]
    assert torch.equal(outputs[1], outputs[2]) or torch.allclose(outputs[1], outputs[2], rtol=0.05, atol=0.02)


def test_float64_stays_float64_under_autocast():
    model, mask = made(NETS[0])
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    fast = skeletal.compile(model, mask, x, path="sparse").eval()
    with autocast():
        out = fast(x)
    assert out.dtype == torch.float64 and torch.equal(out, fast(x))


def test_copies_and_states_train_on_alike():
    fast, _, batches = compiled(path="sparse")
    train(fast, batches, sgd(fast))
    twin, other = copy.deepcopy(fast), compiled(path="sparse")[0]
    other.load_state_dict(fast.state_dict())
    losses = [train(network, batches, sgd(network)) for network in (fast, twin, other)]
    assert losses[0] == losses[1] == losses[2]
    assert fast.state_dict()["0.weight"].dtype == torch.float32


def test_a_network_that_cannot_be_traced():
    model = Tokens(tie=True)
    mask = skeletal.Mask(random_mask(model, 0.3))
    batch = tokens(1)[0]
    fast = skeletal.compile(model, mask, batch, path="sparse", dtype=HALF).eval()
    assert any(isinstance(module, Sparse) for module in fast.modules())
    with torch.no_grad(), autocast():
        half = fast(**batch)["loss"]
    with torch.no_grad():
        assert float(half) == pytest.approx(float(fast(**batch)["loss"]), rel=0.05)


def test_what_is_measured_under_autocast():
    """All ways, those on maps in float32 among them; `dtype` stands for the autocast around compile."""
    fast, _, batches = compiled(dtype=HALF)
    full = "sparse, float32 maps"
    assert full in fast.report.steps and fast.report.chosen == min(fast.report.steps, key=fast.report.steps.__getitem__)
    with autocast():
        assert compiled()[0].report == fast.report, "remembered"
    assert full not in compiled()[0].report.steps
    with autocast():
        assert full not in compiled(dtype=torch.float32)[0].report.steps
    paths = dict.fromkeys(fast.sparse_layers(), "sparse")
    outputs = []
    for way in ("sparse", full):
        fast.repeat(paths, way)
        assert all(layer.bf16 == (way == "sparse") for layer in fast.sparse_layers().values())
        with autocast(), torch.no_grad():
            outputs.append(fast.eval()(batches[0][0]))
    assert outputs[0].dtype == outputs[1].dtype == HALF and not torch.equal(*outputs)
    assert torch.allclose(*outputs, rtol=0.1, atol=0.05)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="float16"):
        compiled(dtype=torch.float16)


def test_a_flat_network():
    """Linear layers only, as well as between blocked maps and rows."""
    model = mlp()
    mask = skeletal.Mask(random_mask(model, 0.3))
    batches = images(2)
    fast = skeletal.compile(model, mask, batches[0], path="sparse").train()
    assert all(loss < 10 for loss in train(fast, batches, sgd(fast)))
    assert Flattened in NETS

"""How near numbers in bfloat16 are: each rounded as torch rounds it, networks no further off than in its autocast."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import skeletal
from skeletal.engine.modules.blocked import Blocked, to_images
from skeletal.engine.modules.conv_norm import ConvNorm
from skeletal.engine.ops.affine import Affine
from skeletal.engine.ops.calls import run_convolution, run_gradients
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid, pack, unpack
from skeletal.engine.plan.plan import ConvPlan
from tests.engine.half import HALF, nothing_remembered, same_bits
from tests.engine.networks import NETS, made
from tests.engine.sparse_cases import assert_clean, rubbish

__all__ = ["nothing_remembered"]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 3.3895314e38, -1e-30, 1 + 2**-8, 1 + 3 * 2**-8]


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
    assert (error < spacing).all()
    same_sign = torch.sign(found[1]) * torch.sign(stored[1])
    assert (same_sign[large[1]] == 1).all()


@pytest.mark.parametrize("positive", [False, True])
def test_pairs_in_windows_are_not_off_to_one_side(positive):
    """Not even where all are round already and none is negative, as what a norm has before training."""
    numbers = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    stored, found = read_through_a_window(numbers.abs() if positive else numbers)
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

"""The kernels equal torch on the masked weight, write all they should, and share work without changing it."""

import multiprocessing
import threading
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from skeletal.engine.ops import launch_args
from skeletal.engine.ops.affine import Affine, Materialize
from skeletal.engine.ops.calls import run_convolution, run_gradients
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid, pack, unpack
from skeletal.engine.plan.plan import ConvPlan
from tests.engine.sparse_cases import Case, assert_clean, cases, close, rubbish, small_windows, threads

DENSE = Case(Shape((1, 1), (1, 1), (1, 1), 1, (3, 3)), 37, 6, 5, 7, 9, "half", 0)
STRIDED = Case(Shape((2, 2), (1, 1), (1, 1), 1, (3, 3)), 19, 4, 7, 7, 8, "half", 1)


def planned(case, extra=0):
    """The tables of a case, with halos `extra` wider than needed."""
    ahead, back = case.shape.halos(case.height, case.width)
    source = MapGrid(case.height, case.width, ahead + extra)
    return ConvPlan(case.mask, case.shape, source, MapGrid(*case.shape.output(case.height, case.width), back + extra))


def conv2d(case, x, weight, bias=None):
    s = case.shape
    return F.conv2d(x, weight, bias, s.stride, s.padding, s.dilation, s.groups)


def outcome(case, dtype=torch.float64):
    """Storages and gradients, through all kernels."""
    plan = planned(case)
    x = pack(case.images.to(dtype), plan.source)
    values = case.layer.weight.detach().to(dtype)[case.mask]
    out = run_convolution(plan, x, values, case.examples)
    slope = pack(torch.sin(unpack(out, plan.target, case.examples)), plan.target)
    return out, *run_gradients(plan, slope, x, values, case.examples)


@settings(max_examples=150)
@given(cases(), st.integers(0, 2), st.booleans(), st.sampled_from([torch.float64, torch.float64, torch.float32]))
def test_three_kernels_equal_torch(case, extra, parted, dtype):
    images = case.images.to(dtype).requires_grad_()
    weight = (case.layer.weight.detach() * case.mask).to(dtype).requires_grad_()
    expected = conv2d(case, images, weight)
    slope = torch.sin(expected.detach() * 3)
    expected.backward(slope)
    plan = planned(case, extra)
    x, values = pack(images.detach(), plan.source), weight.detach()[case.mask]
    gradient = pack(slope, plan.target)
    with rubbish():
        if parted:
            with small_windows():
                _ = plan.forward, plan.backward  # made now, and kept
        out = run_convolution(plan, x, values, case.examples)
        grad_x, grad_values = run_gradients(plan, gradient, x, values, case.examples)
        halves = [run_gradients(plan, gradient, x, values, case.examples, wanted=w)[w[1]] for w in ((1, 0), (0, 1))]
    close(unpack(out, plan.target, case.examples), expected.detach(), "output")
    close(unpack(grad_x, plan.source, case.examples), images.grad, "input gradient")
    close(grad_values / len(slope), weight.grad[case.mask] / len(slope), "weight gradient")
    assert torch.equal(halves[0], grad_x) and torch.equal(halves[1], grad_values)
    assert_clean(out, plan.target, case.examples)
    assert_clean(grad_x, plan.source, case.examples)


@given(cases(), st.booleans(), st.booleans(), st.booleans())
def test_what_follows_a_convolution(case, affine, added, relu):
    plan = planned(case)
    weight = case.layer.weight.detach() * case.mask
    expected = conv2d(case, case.images, weight)
    other = torch.cos(7 * expected)
    scale, shift = case.random(case.outputs), case.random(1, case.outputs)[0]
    if affine:
        expected = expected * scale[:, None, None] + shift[:, None, None]
    if added:
        expected = expected + other
    if relu:
        expected = torch.relu(expected)
    with rubbish():
        out = run_convolution(
            plan, pack(case.images, plan.source), weight[case.mask], case.examples,
            scale=scale if affine else None, shift=shift if affine else None,
            other=pack(other, plan.target) if added else None, relu=relu,
        )  # fmt: skip
    close(unpack(out, plan.target, case.examples), expected)
    assert_clean(out, plan.target, case.examples)


@given(cases())
def test_addition_to_the_input_gradient(case):
    plan = planned(case)
    values = case.layer.weight.detach()[case.mask]
    slope = pack(case.random(case.examples, case.outputs, plan.target.height, plan.target.width), plan.target)
    passed = pack(case.images, plan.source)
    arguments = plan, slope, passed, values, case.examples
    alone, _ = run_gradients(*arguments)
    with rubbish():
        together, _ = run_gradients(*arguments, passed=passed)
    close(together, alone + passed)


@settings(max_examples=150)
@given(cases(), st.integers(0, 2), st.sampled_from([1, 2000, 1 << 30]), st.booleans(), st.integers(1, 3))
def test_maps_read_through_a_line_buffer_are_those_that_were_materialized(case, extra, window, relu, count):
    """Whatever its size, whoever goes down which part of a map: the same bits."""
    plan = planned(case, extra)
    values = case.layer.weight.detach()[case.mask]
    raw = pack(case.images, plan.source)
    scale, shift = case.random(1, case.inputs)[0], case.random(case.inputs)
    affine = Affine(scale.numpy(), shift.numpy(), relu)
    slope = pack(case.random(case.examples, case.outputs, plan.target.height, plan.target.width), plan.target)
    x = Materialize.apply(raw, affine, plan.source, case.examples)
    expected = case.images * scale[:, None, None] + shift[:, None, None]
    close(unpack(x, plan.source, case.examples), torch.relu(expected) if relu else expected)
    found = []
    with rubbish(), threads(count), mock.patch.object(launch_args, "_BUFFER", window):
        for maps, before in ((raw, affine), (x, None)):
            out = run_convolution(plan, maps, values, case.examples, affine=before)
            found.append([out, *run_gradients(plan, slope, maps, values, case.examples, affine=before)])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_parts_are_as_many_as_the_window_asks_for():
    whole = planned(DENSE).forward
    with small_windows():
        parted = planned(DENSE).forward
    assert whole.pointers.shape[1] == 1 and parted.pointers.shape[1] > 1
    assert sorted(parted.order.tolist()) == sorted(whole.order.tolist()) == list(range(int(DENSE.mask.sum())))


@pytest.mark.parametrize("width", range(1, 20))
def test_tiles_cover_every_pixel_once(width):
    for height in (1, 2, 3):
        grid = MapGrid(height, width, 1)
        plan = ConvPlan(torch.ones(1, 1, 1, 1, dtype=torch.bool), Shape((1, 1), (0, 0), (1, 1), 1, (1, 1)), grid, grid)
        assert plan.tiling.tiles[:, 4].sum() == height * width
        ones = torch.ones(1, 1, height, width, dtype=torch.float64)
        found = run_convolution(plan, pack(ones, grid), torch.ones(1, dtype=torch.float64), 1)
        assert torch.equal(unpack(found, grid, 1), ones)


def test_offsets_beyond_32_bits_are_refused():
    huge = MapGrid(20_000, 20_000, 0)
    plan = ConvPlan(
        torch.ones(1, 2, 1, 1, dtype=torch.bool), Shape((1, 1), (0, 0), (1, 1), 1, (1, 1)), huge, MapGrid(1, 1, 0)
    )
    with pytest.raises(ValueError, match=r"2 channels .*20000.* 32-bit"):
        _ = plan.forward


@pytest.mark.parametrize("case", [DENSE, STRIDED], ids=["stride 1", "stride 2"])
def test_any_number_of_threads_gives_the_same(case):
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(outcome(case))
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0]) and torch.equal(other[1], found[0][1])
        close(other[2], found[0][2], "weight gradient")


def test_threads_of_the_caller_do_not_disturb_each_other():
    with threads(2):
        expected = {case: outcome(case) for case in (DENSE, STRIDED)}
        found, start = [], threading.Barrier(4)

        def work(case):
            start.wait()
            found.extend((case, outcome(case)) for _ in range(10))

        callers = [threading.Thread(target=work, args=(case,)) for case in (DENSE, STRIDED) * 2]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert len(found) == 40
    for case, results in found:
        for one, two in zip(results, expected[case], strict=True):
            close(one, two)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_makes_threads_of_its_own():
    plan = planned(DENSE)
    x, values = pack(DENSE.images, plan.source), DENSE.layer.weight.detach()[DENSE.mask]

    def convolve():  # and nothing of torch's own: its threads do hang after a fork
        return run_convolution(plan, x, values, DENSE.examples)

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(convolve().numpy()))
    with threads(2):
        expected = convolve()  # leaves a pool behind, whose threads the child does not have
        child.start()
        try:
            assert receiver.poll(60), "the child hangs"
            assert torch.equal(torch.from_numpy(receiver.recv()), expected)
            child.join(60)
            assert child.exitcode == 0
        finally:
            child.kill()

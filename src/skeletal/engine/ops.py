"""The differentiable operations on blocked maps: kernels with their backward passes.

All take and return storages (see `grid.Grid`), float32 or float64, in memory of the `arena`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skeletal.engine import arena, elementwise, kernels
from skeletal.engine.grid import Grid, pack, unpack
from skeletal.engine.plan import Plan, Shape, Tables
from skeletal.engine.threads import share, thread_count
from skeletal.engine.tiles import LANES

NOTHING = {dtype: np.empty(0, array) for dtype, array in ((torch.float32, np.float32), (torch.float64, np.float64))}
_NO_MOMENTS = np.empty((0, 0, 2))


def flat(tensor: Tensor | None, dtype: torch.dtype | None = None) -> np.ndarray:
    """What a kernel sees of a contiguous tensor; nothing, of the given type, where there is none."""
    if tensor is None:
        assert dtype is not None
        return NOTHING[dtype]
    return tensor.detach().view(-1).numpy()


def numbers(grid: Grid) -> tuple[int, int, int, int]:
    """A grid as kernels take it."""
    return grid.height, grid.width, grid.halo, grid.plane


_FEW_TILES = 2


def _splits(units: int, channels: int) -> int:
    """Into how many parts output channels are cut: where there are too few blocks and bands to share among threads."""
    threads = torch.get_num_threads()
    return 1 if units >= 4 * threads or threads == 1 else max(1, min(channels, 4 * threads))


def run_convolution(
    tables: Tables,
    x: Tensor,
    values: Tensor,
    channels: int,
    grid: Grid,
    examples: int,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    other: Tensor | None = None,
    relu: bool = False,
    moments: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """One pass of `kernels.convolve`: the storage of the output, and sum and sum of squares of its channels."""
    blocks, _, plane = x.shape
    later, other = (None, other) if tables.whole_rows else (other, None)
    units = blocks * len(tables.bands)
    splits = _splits(units, channels)
    out = arena.empty((blocks, channels, grid.plane), x.dtype)
    if not units:
        out.zero_()
    sums = np.empty((units, channels, 2)) if moments else _NO_MOMENTS
    # Not `values[tables.order]`: torch would share it among threads of its own, which go on to spin where ours work.
    weights = np.empty(len(tables.order), out.numpy().dtype)
    kernels.take(flat(values), tables.order.numpy(), weights)
    share(
        kernels.convolve, units * splits,
        flat(x), x.shape[1] * plane, flat(out), channels * grid.plane,
        weights, tables.offsets, tables.pointers, tables.tiles, tables.bands, tables.strides,
        numbers(grid), flat(scale, x.dtype), flat(shift, x.dtype), flat(other, x.dtype), int(relu), sums,
        examples, splits,
    )  # fmt: skip
    if later is not None:
        out.add_(later)
    return out, torch.from_numpy(sums.sum(0)) if moments else None


def run_weight_gradient(plan: Plan, x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the kept weights, in the order of the mask."""
    tables = plan.forward
    units = x.shape[0] * len(tables.bands)
    splits = _splits(units, plan.outputs)
    units *= splits
    lanes = 1 if x.shape[0] * len(tables.tiles) <= _FEW_TILES else LANES
    sums = arena.empty((thread_count(units), plan.kept, lanes), x.dtype)
    share(
        kernels.weight_gradient, units,
        flat(x), x.shape[1] * x.shape[2], flat(gradient), gradient.shape[1] * gradient.shape[2],
        tables.offsets, tables.pointers, tables.tiles, tables.bands, tables.strides, plan.target.plane,
        sums.numpy(), splits,
    )  # fmt: skip
    found = torch.empty(plan.kept, dtype=x.dtype)
    share(kernels.add_up, plan.kept, sums.numpy(), tables.order.numpy(), found.numpy())
    return found


class Convolve(torch.autograd.Function):
    """A sparse convolution. Hands its input on, so that whoever else reads it sends its gradient here, and adding the
    two costs no pass of its own.

    `apply(x, values, bias, plan, examples, moments)` returns output, moments (None unless asked for), x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan, examples: int, moments: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.examples = plan, examples
        ctx.save_for_backward(x, values)
        scale = None if bias is None else torch.ones_like(bias)
        out, sums = run_convolution(
            plan.forward, x, values.detach(), plan.outputs, plan.target, examples,
            scale=scale, shift=bias, moments=moments,
        )  # fmt: skip
        if sums is not None:
            ctx.mark_non_differentiable(sums)
        return out, sums, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: Any, passed: Tensor | None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        x, values = ctx.saved_tensors
        plan = ctx.plan
        if gradient is None:
            return passed, None, None, None, None, None
        gradient = gradient.contiguous()
        of_x = of_values = of_bias = None
        if ctx.needs_input_grad[0]:
            other = None if passed is None else passed.contiguous()
            of_x, _ = run_convolution(
                plan.backward, gradient, values.detach(), plan.inputs, plan.source, ctx.examples, other=other
            )
        if ctx.needs_input_grad[1]:
            of_values = run_weight_gradient(plan, x, gradient)
        if ctx.needs_input_grad[2]:
            of_bias = plan.target.inside(gradient).sum((0, 2, 3, 4))
        return of_x, of_values, of_bias, None, None, None


class Multiply(torch.autograd.Function):
    """A sparse linear map: `apply(x, values, plan)` of x (examples, inputs) gives (examples, outputs).

    Its plan is of a convolution on a map of one row, whose pixels are blocks of examples.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, plan: Plan) -> Tensor:
        columns = _columns(x, plan.source)
        ctx.plan = plan
        ctx.save_for_backward(columns, values)
        out, _ = run_convolution(plan.forward, columns, values.detach(), plan.outputs, plan.target, 0)
        return _rows(out, len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        columns, values = ctx.saved_tensors
        plan = ctx.plan
        of_out = _columns(gradient, plan.target)
        of_x = of_values = None
        if ctx.needs_input_grad[0]:
            found, _ = run_convolution(plan.backward, of_out, values.detach(), plan.inputs, plan.source, 0)
            of_x = _rows(found, len(gradient))
        if ctx.needs_input_grad[1]:
            of_values = run_weight_gradient(plan, columns, of_out)
        return of_x, of_values, None


def _columns(rows: Tensor, grid: Grid) -> Tensor:
    """A storage (1, features, grid.plane) of rows (examples, features)."""
    storage = torch.empty(1, rows.shape[1], grid.plane, dtype=rows.dtype)
    storage[0, :, : len(rows)].copy_(rows.t())
    storage[0, :, len(rows) :] = 0
    return storage


def _rows(storage: Tensor, examples: int) -> Tensor:
    # Memory of its own: what a Function returns as a view cannot be changed in place.
    return storage[0, :, :examples].t().clone(memory_format=torch.contiguous_format)


class Normalise(torch.autograd.Function):
    """Batch norm, then optionally the addition of another map, then optionally ReLU.

    `apply(x, weight, bias, other, mean, variance, batch_statistics, eps, relu, grid, examples)`; mean and variance are
    float64, of the batch if `batch_statistics`, which the gradient then goes through.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        other: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        batch_statistics: bool,
        eps: float,
        relu: bool,
        grid: Grid,
        examples: int,
    ) -> Tensor:
        inverse = (variance + eps).rsqrt()
        exact = inverse if weight is None else weight.detach().double() * inverse
        scale = exact.to(x.dtype)
        shift = (-mean * exact if bias is None else bias.detach().double() - mean * exact).to(x.dtype)
        out = arena.empty(tuple(x.shape), x.dtype)
        blocks, channels, _ = x.shape
        share(
            elementwise.scale_shift, blocks * channels, flat(x), flat(out), numbers(grid), channels,
            flat(scale), flat(shift), flat(other, x.dtype), int(relu), examples,
        )  # fmt: skip
        ctx.settings = batch_statistics, relu, grid, examples, scale, shift, mean, inverse, exact
        ctx.save_for_backward(x, out if relu and other is not None else None)
        ctx.has_other = other is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        x, out = ctx.saved_tensors
        batch_statistics, relu, grid, examples, scale, shift, mean, inverse, exact = ctx.settings
        gradient = gradient.contiguous()
        blocks, channels, _ = x.shape
        units = blocks * channels
        sums = np.empty((units, 2))
        share(
            elementwise.reduce_gradient, units, flat(x), flat(out, x.dtype), flat(gradient), numbers(grid), channels,
            flat(scale), flat(shift), int(relu), sums,
        )  # fmt: skip
        total, product = torch.from_numpy(sums).view(blocks, channels, 2).sum(0).unbind(1)
        of_weight = (product - mean * total) * inverse
        by_x, constant = torch.zeros_like(exact), torch.zeros_like(exact)
        if batch_statistics:
            count = examples * grid.height * grid.width
            by_x = -exact * inverse * of_weight / count
            constant = -exact * total / count - by_x * mean
        of_x = arena.empty(tuple(x.shape), x.dtype)
        apart = ctx.has_other and relu  # else the other's gradient is the one that came in
        of_other = arena.empty(tuple(x.shape), x.dtype) if apart else None
        share(
            elementwise.apply_gradient, units, flat(x), flat(out, x.dtype), flat(gradient), flat(of_x),
            flat(of_other, x.dtype), numbers(grid), channels, flat(scale), flat(shift), int(relu),
            flat(scale), flat(by_x.to(x.dtype)), flat(constant.to(x.dtype)), examples,
        )  # fmt: skip
        if ctx.has_other and not relu:
            of_other = gradient
        return (
            of_x,
            of_weight.to(x.dtype) if ctx.needs_input_grad[1] else None,
            total.to(x.dtype) if ctx.needs_input_grad[2] else None,
            of_other,
            *[None] * 7,
        )


class Spread(torch.autograd.Function):
    """Kept values to a dense weight: `apply(values, kept, shape)`, with `kept` the positions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(kept)
        if values.device.type != "cpu" or values.dtype not in NOTHING:
            return values.new_zeros(shape).view(-1).index_copy(0, kept, values).view(shape)
        dense = arena.empty(shape, values.dtype).zero_()
        kernels.put(flat(values), kept.numpy(), flat(dense))
        return dense

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        (kept,) = ctx.saved_tensors
        return gradient.reshape(-1).index_select(0, kept), None, None


class Windows:
    """The windows of a pooling layer on maps of one size, as kernels take them."""

    def __init__(self, shape: Shape, source: Grid, target: Grid) -> None:
        self.source, self.target = source, target
        pixels, counts, offsets, positions = [], [0], [], []
        inside = [range(source.height), range(source.width)]
        for h in range(target.height):
            for w in range(target.width):
                pixels.append(target.at(h, w))
                for i in range(shape.kernel[0]):
                    for j in range(shape.kernel[1]):
                        at = [
                            out * shape.stride[axis] - shape.padding[axis] + step * shape.dilation[axis]
                            for axis, (out, step) in enumerate(((h, i), (w, j)))
                        ]
                        if at[0] in inside[0] and at[1] in inside[1]:
                            offsets.append(source.at(*at))
                            positions.append(i * shape.kernel[1] + j)
                counts.append(len(offsets))
        kinds = (np.int64, np.int64, np.int64, np.uint8)
        found = zip((counts, pixels, offsets, positions), kinds, strict=True)
        self.tables = tuple(np.array(numbers, kind) for numbers, kind in found)


class MaxPool(torch.autograd.Function):
    """`apply(x, windows)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows) -> Tensor:
        blocks, channels, plane = x.shape
        shape = (blocks, channels, windows.target.plane)
        out, chosen = arena.empty(shape, x.dtype), arena.empty(shape, torch.uint8)
        arguments = flat(x), flat(out), flat(chosen), plane, numbers(windows.target), *windows.tables
        share(elementwise.max_pool, blocks * channels, *arguments)
        ctx.save_for_backward(chosen)
        ctx.windows = windows
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        (chosen,) = ctx.saved_tensors
        windows = ctx.windows
        blocks, channels, out_plane = gradient.shape
        plane = windows.source.plane
        out = arena.empty((blocks, channels, plane), gradient.dtype)
        arguments = flat(gradient.contiguous()), flat(chosen), flat(out), plane, out_plane, *windows.tables
        share(elementwise.max_pool_gradient, blocks * channels, *arguments)
        return out, None


class GlobalMean(torch.autograd.Function):
    """`apply(x, grid, examples)` gives (examples, channels)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, examples: int) -> Tensor:
        blocks, channels, _ = x.shape
        means = torch.empty(blocks * channels, LANES, dtype=x.dtype)
        share(elementwise.mean, blocks * channels, flat(x), means.numpy(), numbers(grid))
        ctx.settings = grid, examples, x.shape
        by_example = means.view(blocks, channels, LANES).transpose(1, 2).flatten(0, 1)[:examples]
        return by_example.clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        grid, examples, (blocks, channels, _) = ctx.settings
        spread = gradient.new_zeros(blocks * LANES, channels)
        spread[:examples] = gradient
        spread = spread.view(blocks, LANES, channels).transpose(1, 2).reshape(blocks * channels, LANES)
        out = arena.empty((blocks, channels, grid.plane), gradient.dtype)
        share(elementwise.mean_gradient, blocks * channels, spread.numpy(), flat(out), numbers(grid))
        return out, None, None


class Pack(torch.autograd.Function):
    """Images (N, C, H, W) to a storage: `apply(images, grid)`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Grid) -> Tensor:
        ctx.settings = grid, len(images)
        return pack(images, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        return unpack(gradient.contiguous(), *ctx.settings), None


class Unpack(torch.autograd.Function):
    """A storage to images (N, C, H, W): `apply(storage, grid, examples)`."""

    @staticmethod
    def forward(ctx: Any, storage: Tensor, grid: Grid, examples: int) -> Tensor:
        ctx.grid = grid
        return unpack(storage, grid, examples)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        return pack(gradient, ctx.grid), None, None


def moments_of(x: Tensor, grid: Grid) -> Tensor:
    """Sum and sum of squares of each channel, (channels, 2), float64."""
    blocks, channels, _ = x.shape
    sums = np.empty((blocks * channels, 2))
    share(elementwise.moments, blocks * channels, flat(x), numbers(grid), channels, sums)
    return torch.from_numpy(sums).view(blocks, channels, 2).sum(0)

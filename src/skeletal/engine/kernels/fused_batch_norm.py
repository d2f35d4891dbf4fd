"""A convolution with batch norm, forward and backward, each in one piece of compiled code.

Between the passes over maps there is a little work on per-channel numbers. It takes Python a fraction of a millisecond,
because the maps have evicted all that it needs from the cache, and there are dozens of such layers.
"""

import math

from skeletal.engine.codegen.compiling import compiled
from skeletal.engine.codegen.fork import fork, held, part_of
from skeletal.engine.codegen.packed_bf16 import LANES, array_at, lanes
from skeletal.engine.kernels.arguments import Epilogue, Maps, NormGradient, Prologue, Source, Target
from skeletal.engine.kernels.blocks import convolve_blocks, gradients_of_blocks
from skeletal.engine.kernels.dispatch import add_all_up, arrange, part_of_either
from skeletal.engine.kernels.elementwise import reduce_gradient, scale_shift
from skeletal.engine.kernels.sparse import convolve, gradients


@compiled
def factors(
    sums, count, from_batch, running_mean, running_variance, rate, eps, weight, bias, added, numbers, scale, shift
):
    """What batch norm multiplies by and adds, for each channel.

    Args:
        sums: (parts, channels, 2), of the values and of their squares.
        count: of values in a channel; with none, the batch's mean and variance are 0, and running ones stay.
        from_batch: whether mean and variance are the batch's, else the running ones.
        running_mean, running_variance: moved towards the batch's by `rate`, unless that is 0.
        rate, eps: as in batch norm.
        weight, bias: as in batch norm; empty for 1 and 0.
        added: to each channel before batch norm, where that is not in the sums; empty for 0.
        numbers: (3, channels), gets mean, inverse deviation, and their product with the weight, in float64.
        scale, shift: get the result.

    """
    channels = numbers.shape[1]
    if from_batch:
        numbers[:2] = 0
        for part in range(sums.shape[0]):
            for channel in range(channels):
                numbers[0, channel] += sums[part, channel, 0]
                numbers[1, channel] += sums[part, channel, 1]
    for channel in range(channels):
        if from_batch:
            mean = numbers[0, channel] / max(count, 1)
            variance = numbers[1, channel] / max(count, 1) - mean * mean
            if variance < 0:
                variance = 0.0
            if rate != 0 and count > 0:
                old = running_mean[channel]
                running_mean[channel] = old + rate * (mean - old)
                old = running_variance[channel]
                running_variance[channel] = old + rate * (variance * count / (count - 1) - old)
        else:
            mean, variance = float(running_mean[channel]), float(running_variance[channel])
        inverse = 1 / math.sqrt(variance + eps)
        exact = inverse * weight[channel] if weight.size else inverse
        numbers[0, channel], numbers[1, channel], numbers[2, channel] = mean, inverse, exact
        scale[channel] = exact
        start = added[channel] - mean if added.size else -mean
        shift[channel] = bias[channel] + start * exact if bias.size else start * exact


@compiled
def slopes(sums, count, from_batch, numbers, x_factor, constant, grad_weight, grad_bias):
    """How the gradient goes back through batch norm: by x and constant, for each channel, and those of its parameters.

    `sums` are (blocks * channels, 2), see `elementwise.reduce_gradient`; the rest as in `factors`.
    """
    channels = numbers.shape[1]
    for channel in range(channels):
        mean, inverse, exact = numbers[0, channel], numbers[1, channel], numbers[2, channel]
        total = product = 0.0
        for unit in range(channel, sums.shape[0], channels):
            total += sums[unit, 0]
            product += sums[unit, 1]
        slope = (product - mean * total) * inverse
        grad_weight[channel], grad_bias[channel] = slope, total
        x_factor[channel] = constant[channel] = 0
        if from_batch:
            times_x = -exact * inverse * slope / max(count, 1)
            x_factor[channel] = times_x
            constant[channel] = -exact * total / max(count, 1) - times_x * mean


@compiled
def _numbers_at(pointer, kinds):
    """An array of the numbers in slots that lie at a `Pointer`."""
    size = pointer[1] * (lanes(kinds[2]) // LANES)
    return array_at((pointer[0], size), kinds[2])


@compiled
def _rows(array, count):
    """That many rows of equal length of an array."""
    return array.reshape((count, array.size // count))


@compiled
def shared_forward(
    boards, threads, units, kinds, maps, numbers, weights, tables, launch, before, sums, normalised, state, then,
    settings,
):  # fmt: skip
    """A convolution and, where batch norm follows, its work by channel and perhaps by number; by several threads.

    Args:
        kinds: empty arrays, like slots, slots of buffers, numbers of maps, values.
        maps: pointers to slots: x, buffers and output of the convolution, what is added to it; output of `scale_shift`,
            if that is to follow, and what is added there.
        numbers: pointers to values: kept ones, the convolution's scale and shift, running mean and variance, weight and
            bias of batch norm.
        weights: memory for the kept values in the order of the tables.
        tables: that order, and see `sparse.convolve`.
        launch: see `launch_args.LaunchArgs`.
        before, sums: see `sparse.convolve`; sums are its moments.
        normalised: whether batch norm follows: 1 after the convolution, 2 within it, in place of scale and shift.
        state: count, whether statistics are the batch's, rate, eps and numbers of `factors`.
        then: scale and shift of batch norm, which are written.
        settings: whether the convolution ends with ReLU, and batch norm does, examples, splits.

    """
    slots_like, buffers_like, _, values_like = kinds
    order = tables[0]
    x_maps, x_block, grid_slots, grid, out_block, channels = launch
    relu, relu_then, examples, splits = settings
    values, factor, constant, mean, variance, weight, bias = numbers
    count, from_batch, rate, eps, found = state
    arrange(boards, threads, array_at(values, values_like), order, weights)
    scale, shift = array_at(factor, values_like), array_at(constant, values_like)
    means, variances = array_at(mean, values_like), array_at(variance, values_like)
    weights_then, biases = array_at(weight, values_like), array_at(bias, values_like)
    if normalised == 2:
        factors(
            sums, count, from_batch, means, variances, rate, eps, weights_then, biases, shift, found, then[0], then[1]
        )
        scale, shift = then
    out, other = array_at(maps[2], slots_like), array_at(maps[3], slots_like)
    convolving = (
        Source(array_at(maps[0], slots_like), x_block, Maps(*x_maps), _rows(array_at(maps[1], buffers_like), threads)),
        Prologue(*before), Target(out, out_block, _numbers_at(maps[2], kinds), grid), weights, tables[1:],
        Epilogue(scale, shift, other, relu, other[:0]), sums, examples, splits,
    )  # fmt: skip
    fork(boards, threads, units, part_of_either(convolve, convolve_blocks, order, convolving), held(convolving))
    if normalised == 1:
        factors(
            sums, count, from_batch, means, variances, rate, eps, weights_then, biases, values_like, found,
            then[0], then[1],
        )  # fmt: skip
        materialized, added = array_at(maps[4], slots_like), array_at(maps[5], slots_like)
        normalising = out, materialized, grid_slots, channels, then[0], then[1], added, relu_then, examples
        fork(boards, threads, materialized.size // grid_slots[3], part_of(scale_shift, normalising), held(normalising))


@compiled
def shared_backward(
    boards, threads, units, kinds, maps, numbers, weights, tables, tables_back, launch, before, sums, normalised, state,
    then, back, settings,
):  # fmt: skip
    """The backward pass through batch norm, if there was one, and the convolution, by several threads.

    Args:
        kinds, normalised, then, before, weights: as in `shared_forward`, and kept values in the order of tables_back.
        maps: pointers to slots: the gradient and buffers for it, x and buffers for it, the gradient of x and what is
            added to it; of batch norm its input, where needed its output, and the gradient of what was added.
        numbers: pointers to values: kept ones; what is written: their gradients, sums for those, gradients of weight
            and bias of batch norm.
        tables, tables_back, launch: see `launch_args.LaunchArgs`, `sparse.gradients`.
        sums: memory for `reduce_gradient`.
        state: as in `shared_forward`.
        back: x_factor and constant, which are written, empty without batch norm.
        settings: ReLU after batch norm, examples, splits, kept weights and lanes of their sums, whether the gradient of
            x counts only where x is above 0.

    """
    slots_like, buffers_like, _, values_like = kinds
    gradient_maps, gradient_block, gradient_grid, x_maps, x_block, x_grid = launch
    relu, examples, splits, kept, lanes_of_sums, relu_backward = settings
    gradient, buffers, x, x_buffers, grad_x, passed, y, z, grad_other = maps
    values, grad_values, memory, grad_weight, grad_bias = numbers
    count, from_batch, _, _, found = state
    if normalised:
        reducing = (
            _numbers_at(y, kinds), _numbers_at(z, kinds), _numbers_at(gradient, kinds),
            gradient_grid, gradient_maps[4], then[0], then[1], relu, sums,
        )  # fmt: skip
        fork(boards, threads, sums.shape[0], part_of(reduce_gradient, reducing), held(reducing))
        slopes(
            sums, count, from_batch, found, back[0], back[1],
            array_at(grad_weight, values_like), array_at(grad_bias, values_like),
        )  # fmt: skip
    arrange(boards, threads, array_at(values, values_like), tables_back[0], weights)
    norm = NormGradient(
        array_at(y, slots_like), array_at(z, slots_like), array_at(grad_other, slots_like), relu,
        then[0], then[1], then[0], back[0], back[1],
    )  # fmt: skip
    parts = array_at(memory, values_like).reshape((threads, kept, lanes_of_sums))
    buffers_of, x_buffers_of = array_at(buffers, buffers_like), array_at(x_buffers, buffers_like)
    sending = (
        Source(array_at(gradient, slots_like), gradient_block, Maps(*gradient_maps), _rows(buffers_of, threads)), norm,
        Source(array_at(x, slots_like), x_block, Maps(*x_maps), _rows(x_buffers_of, threads)), Prologue(*before),
        tables[1:], parts, Target(array_at(grad_x, slots_like), x_block, _numbers_at(grad_x, kinds), x_grid),
        weights, tables_back[1:], array_at(passed, slots_like), relu_backward, examples, splits,
    )  # fmt: skip
    part = part_of_either(gradients, gradients_of_blocks, tables[0], sending)
    fork(boards, threads, units, part, held(sending))
    add_all_up(boards, threads, parts, tables[0], array_at(grad_values, values_like))

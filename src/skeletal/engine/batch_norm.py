"""A convolution with batch norm, there and back, in one piece of compiled code each.

Between the passes over maps there is a little work on numbers by channel. It takes Python a fraction of a millisecond,
as the maps have driven all that it needs out of the cache, and there are dozens of such layers.
"""

import math

from skeletal.engine.compiling import compiled
from skeletal.engine.elementwise import reduce_gradient, scale_shift
from skeletal.engine.fork import fork, held, part_of
from skeletal.engine.kernels import add_up, convolve, gradients, take


@compiled
def factors(sums, count, of_batch, running_mean, running_variance, rate, eps, weight, bias, numbers, scale, shift):
    """What batch norm multiplies by and adds, for each channel.

    Args:
        sums: (parts, channels, 2), of the values and of their squares.
        count: of values in a channel.
        of_batch: whether mean and variance are the batch's, else the running ones.
        running_mean, running_variance: moved towards the batch's by `rate`, unless that is 0.
        rate, eps: as of batch norm.
        weight, bias: as of batch norm; empty for 1 and 0.
        numbers: (3, channels), gets mean, inverse deviation, and their product with the weight, in float64.
        scale, shift: get the result.

    """
    channels = numbers.shape[1]
    if of_batch:
        numbers[:2] = 0
        for part in range(sums.shape[0]):
            for channel in range(channels):
                numbers[0, channel] += sums[part, channel, 0]
                numbers[1, channel] += sums[part, channel, 1]
    for channel in range(channels):
        if of_batch:
            mean = numbers[0, channel] / count
            variance = numbers[1, channel] / count - mean * mean
            if variance < 0:
                variance = 0.0
            if rate != 0:
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
        shift[channel] = bias[channel] - mean * exact if bias.size else -mean * exact


@compiled
def slopes(sums, count, of_batch, numbers, by_x, constant, of_weight, of_bias):
    """How the gradient goes back through batch norm: by x and constant, for each channel, and those of its parameters.

    `sums` are (blocks * channels, 2), see `elementwise.reduce_gradient`; the rest as of `factors`.
    """
    channels = numbers.shape[1]
    for channel in range(channels):
        mean, inverse, exact = numbers[0, channel], numbers[1, channel], numbers[2, channel]
        total = product = 0.0
        for unit in range(channel, sums.shape[0], channels):
            total += sums[unit, 0]
            product += sums[unit, 1]
        slope = (product - mean * total) * inverse
        of_weight[channel], of_bias[channel] = slope, total
        by_x[channel] = constant[channel] = 0
        if of_batch:
            times_x = -exact * inverse * slope / count
            by_x[channel] = times_x
            constant[channel] = -exact * total / count - times_x * mean


@compiled
def shared_forward(boards, threads, units, taking, convolving, normalising, settling):
    """`take`, `convolve`, `factors` and, unless its maps are empty, `scale_shift`, by several threads."""
    take(*taking)
    fork(boards, threads, units, part_of(convolve, convolving), held(convolving))
    factors(*normalising)
    planes = settling[1].size // settling[2][3]
    if planes:
        fork(boards, threads, planes, part_of(scale_shift, settling), held(settling))


@compiled
def shared_backward(boards, threads, units, reducing, sloping, taking, sending, adding):
    """`reduce_gradient`, `slopes`, `take`, `gradients` and `add_up`, by several threads."""
    fork(boards, threads, reducing[-1].shape[0], part_of(reduce_gradient, reducing), held(reducing))
    slopes(*sloping)
    take(*taking)
    fork(boards, threads, units, part_of(gradients, sending), held(sending))
    fork(boards, threads, len(adding[1]), part_of(add_up, adding), held(adding))


@compiled
def shared_plain_backward(boards, threads, units, taking, sending, adding):
    """The same of a convolution without batch norm."""
    take(*taking)
    fork(boards, threads, units, part_of(gradients, sending), held(sending))
    fork(boards, threads, len(adding[1]), part_of(add_up, adding), held(adding))

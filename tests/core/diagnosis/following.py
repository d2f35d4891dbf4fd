"""Brute force: kept weights are followed one by one, from channel to channel or from pixel to pixel."""

import torch
from torch import nn


def followed(mask, biased, entering):
    """Of a plain chain of linear and convolutional layers: forward and backward over channels, one by one."""
    fed, live, forward = entering, entering, []
    for name, keep in mask.items():
        forward.append((fed, live))
        pairs = keep.reshape(*keep.shape[:2], -1).any(2)
        fed = (pairs & fed).any(1)
        live = (pairs & live).any(1) | biased[name]
    effective, constant = {}, {}
    useful = torch.ones(len(fed), dtype=torch.bool)
    for (name, keep), (fed, live) in reversed(list(zip(mask.items(), forward, strict=True))):
        reaching = keep.reshape(*keep.shape[:2], -1) & useful[:, None, None]
        effective[name] = (reaching & fed[:, None]).view_as(keep)
        constant[name] = (reaching & (live & ~fed)[:, None]).view_as(keep)
        useful = reaching.any(2).any(0)
    return effective, constant


def followed_by_pixel(mask, biased, size):
    """Of two convolutions, a 2x2 max pool, a convolution and a linear layer: forward and backward over pixels."""
    keeps = [keep.double() for keep in mask.values()]
    convolve = nn.functional.conv2d
    layers = list(mask)
    entering = torch.ones(1, keeps[0].shape[1], size, size).double()
    states = []
    for bias in (False, biased):  # without and with what biases make
        x, seen = entering, []
        for i, keep in enumerate(keeps):
            x = nn.functional.max_pool2d(x, 2) if i == 2 else x.flatten(1) if i == 3 else x
            seen.append(x)
            x = (x @ keep.T if i == 3 else convolve(x, keep, padding=1)).gt(0).double()
            x = torch.ones_like(x) if bias and i < 3 else x
        states.append(seen)
    found = []
    for seen in states:
        useful, reached = torch.ones(1, len(keeps[3])).double(), {}
        for i, keep in reversed(list(enumerate(keeps))):
            if i == 3:
                reached[layers[i]] = (useful.T @ seen[i]) * keep > 0
                useful = (useful @ keep).view(1, len(keeps[2]), size // 2, size // 2)
            else:
                shares = nn.grad.conv2d_weight(seen[i], keep.shape, useful, padding=1)
                reached[layers[i]] = (shares > 0.5) & mask[layers[i]]
                useful = nn.grad.conv2d_input(seen[i].shape, keep, useful, padding=1)
                useful = useful.repeat_interleave(2, 2).repeat_interleave(2, 3) if i == 2 else useful
            useful = useful.gt(0.5).double()
        found.append(reached)
    return found[0], {name: found[1][name] & ~found[0][name] for name in mask}


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name

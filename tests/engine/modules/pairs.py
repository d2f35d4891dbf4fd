"""A sparse layer and the dense one that it stands for, and what equal means of the two."""

import pytest
import torch
from torch import nn

from skeletal.engine.modules.blocked import BlockedMaxPool
from skeletal.engine.modules.layers import SparseConv2d, SparseLinear
from skeletal.engine.plan.geometry import Shape
from tests.engine.sparse_cases import Case, blocked_as, close, rubbish

SMALL = Case(Shape((1, 2), (1, 1), (1, 1), 2, (3, 2)), 3, 4, 6, 4, 5, "half", 3)


@pytest.fixture(autouse=True)
def full_of_rubbish():
    """What a layer does not write is NaN."""
    with rubbish():
        yield


def conv(case=SMALL, dtype=torch.float64):
    """A layer of a case, and the dense one that it stands for."""
    dense = case.layer
    sparse = SparseConv2d(dense, case.mask).to(dtype)
    dense.weight.data *= case.mask
    return sparse, dense.to(dtype)


def linear(inputs=7, outputs=5, dtype=torch.float64, bias=True):
    dense = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    mask = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(0)) < 0.4
    sparse = SparseLinear(dense, mask)
    dense.weight.data *= mask
    return sparse, dense, mask


def norm_of(channels, kind):
    """A batch norm with statistics and parameters as after training."""
    options = {"affine": False} if kind == "no affine" else {}
    options |= {"momentum": None} if kind.startswith("cumulative") else {}
    options |= {"track_running_stats": False} if kind == "no statistics" else {}
    norm = nn.BatchNorm2d(channels, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(5)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        if tensor is not None:
            tensor.data.normal_(generator=generator)
    if norm.running_var is not None:
        norm.running_var.uniform_(0.5, 2, generator=generator)
    if kind.endswith("uncounted"):
        norm.num_batches_tracked = None
    return norm


def pooled(images, layer):
    return BlockedMaxPool(layer, halo=1)(blocked_as(1, images.dtype)(images))


def gradients(output, *tensors):
    """For a loss that tells every number of the output apart."""
    slope = torch.sin(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)
    return torch.autograd.grad(output, tensors, slope)


def same(sparse, dense, mask, x):
    """Output, and gradients of input, weight and bias."""
    ours, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
    out, expected = sparse(ours), dense(theirs)
    close(out, expected, "output")
    grad_x, grad_values, *of_bias = gradients(out, ours, *sparse.parameters())
    dense_x, of_weight, *dense_bias = gradients(expected, theirs, *dense.parameters())
    for one, two in ((grad_x, dense_x), (grad_values, of_weight[mask]), *zip(of_bias, dense_bias, strict=True)):
        close(one, two, "gradient")

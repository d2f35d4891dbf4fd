"""Small layers on the engine's kernels, compared with torch."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_OFF = {torch.float32: 1e-4, torch.bfloat16: 0.03}
"""Of a result's norm: a hundred times what rounding makes of sums this short."""


def mismatch(maps: torch.dtype) -> str | None:
    """Which result of a layer, forward or backward, differs from torch's; None if none does. `maps` is their type."""
    for name, found, truth in _results(maps):
        off = float((found.double() - truth).norm() / truth.norm())
        if not off <= _OFF[maps]:  # nor NaN
            return f"its {name} is off by {off:.2g} of what torch computes"
    return None


def _results(maps: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    from skeletal.engine.modules.layers import SparseConv2d, SparseLinear

    generator = torch.Generator().manual_seed(0)
    few, many = 0.05, 0.6  # with a matrix unit and maps in bfloat16: kernels for single weights, and for blocks
    for density, kinds in ((few, (nn.Conv2d, nn.Linear)), (many, (nn.Conv2d,))):
        for kind in kinds:
            layer = nn.Linear(35, 40) if kind is nn.Linear else nn.Conv2d(35, 40, 3, 2, 1)
            size = (37, 35) if kind is nn.Linear else (37, 35, 9, 8)
            for parameter in layer.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator, device="cpu").bfloat16().float()
            mask = torch.rand(layer.weight.shape, generator=generator, device="cpu") < density
            x = torch.randn(size, generator=generator, device="cpu").bfloat16().to(maps)
            sparse = SparseConv2d(layer, mask) if isinstance(layer, nn.Conv2d) else SparseLinear(layer, mask)
            own = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=maps == torch.bfloat16):
                out = sparse(own)
            assert sparse.bias is not None
            slope = torch.randn(out.shape, generator=generator, device="cpu").bfloat16().float()
            found = torch.autograd.grad(out, (own, sparse.values, sparse.bias), slope.to(out.dtype))

            double = x.double().requires_grad_()
            weight, bias = (layer.weight * mask).detach().double().requires_grad_(), sparse.bias.detach().double()
            bias.requires_grad_()
            rest = (sparse.geometry.stride, sparse.geometry.padding) if isinstance(sparse, SparseConv2d) else ()
            truth = (F.conv2d if rest else F.linear)(double, weight, bias, *rest)
            truths = torch.autograd.grad(truth, (double, weight, bias), slope.double())
            name = "convolution" if rest else "linear layer"
            yield name, out.detach(), truth.detach()
            yield f"{name}'s gradient of its input", found[0], truths[0]
            yield f"{name}'s gradient of its weights", found[1], truths[1][mask]
            yield f"{name}'s gradient of its bias", found[2], truths[2]

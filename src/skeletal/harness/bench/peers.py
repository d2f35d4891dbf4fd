"""Other libraries' layers in place of a masked network's own: torch's CSR products, SparseProp and SparseLab."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skeletal.core.model.preserve import preserve_mode

Exchange = Callable[[Any, Tensor, Tensor], nn.Module | None]
"""from a masked layer, its mask and an input: another layer of the same function, or None where there is none"""


def exchange_layers(model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor, exchange: Exchange) -> int:
    """Replace the plain convolutions and linear layers that a mask covers, in place; return how many.

    A layer whose weights are all pruned stays: SparseProp ends the process there.
    """
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, layer in model.named_modules():
        if type(layer) in (nn.Conv2d, nn.Linear) and (keep := mask.get(f"{name}.weight")) is not None and keep.any():
            note: Any = lambda _, args, name=name: seen.setdefault(name, args[0])  # noqa: E731
            hooks.append(layer.register_forward_pre_hook(note))
    with torch.no_grad(), preserve_mode(model, training=False):
        model(inputs)
    for hook in hooks:
        hook.remove()
    count = 0
    for name, x in seen.items():
        other = exchange(model.get_submodule(name), mask[f"{name}.weight"], x)
        if other is not None:
            model.set_submodule(name, other)
            count += 1
    return count


class _CsrProduct(torch.autograd.Function):
    """W X, with W given by its kept values; the gradient of those by torch's sampled product."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, layer: "_Csr") -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.layer = layer
        return layer.matrix(values) @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        values, x = ctx.saved_tensors
        gradient = gradient.contiguous()
        pattern = ctx.layer.matrix(torch.zeros_like(values))
        grad_values = torch.sparse.sampled_addmm(pattern, gradient, x.t(), beta=0.0).values()
        grad_x = ctx.layer.transposed(values) @ gradient if ctx.needs_input_grad[1] else None
        return grad_values, grad_x, None


class _Csr(nn.Module):
    """A linear layer, or a convolution as `unfold` and a product, over the kept values of its weight in CSR order."""

    def __init__(self, layer: Any, keep: Tensor) -> None:
        super().__init__()
        self.geometry: dict[str, Any] | None = None
        if isinstance(layer, nn.Conv2d):
            self.geometry = {key: getattr(layer, key) for key in ("kernel_size", "dilation", "padding", "stride")}
        keep = keep.flatten(1)
        self.weight = nn.Parameter(layer.weight.detach().flatten(1)[keep].clone())
        self.bias = layer.bias
        self.shape = tuple(keep.shape)
        rows, columns = keep.nonzero().t()
        self.order = (columns * self.shape[0] + rows).argsort()
        self.indices = _starts(rows, self.shape[0]), columns
        self.transposed_indices = _starts(columns, self.shape[1]), rows[self.order]

    def matrix(self, values: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(*self.indices, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(*self.transposed_indices, values[self.order], self.shape[::-1])

    def forward(self, x: Tensor) -> Tensor:
        if self.geometry is None:
            columns = x.flatten(0, -2).t().contiguous()  # (inputs, N)
            out = _CsrProduct.apply(self.weight, columns, self).t().unflatten(0, x.shape[:-1])
            return out if self.bias is None else out + self.bias
        height, width = (self._size(x.shape[2 + i], i) for i in (0, 1))
        if self.geometry["kernel_size"] == (1, 1) and self.geometry["padding"] == (0, 0):
            down, across = self.geometry["stride"]
            columns = x[:, :, ::down, ::across].transpose(0, 1).flatten(1)  # (channels, N H W)
        else:
            columns = nn.functional.unfold(x, **self.geometry).transpose(0, 1).flatten(1)  # (channels taps, N H W)
        out = _CsrProduct.apply(self.weight, columns, self).unflatten(1, (len(x), height, width)).transpose(0, 1)
        return out if self.bias is None else out + self.bias[:, None, None]

    def _size(self, size: int, dim: int) -> int:
        assert self.geometry is not None
        kernel, dilation, padding, stride = (self.geometry[key][dim] for key in self.geometry)
        return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _starts(rows: Tensor, count: int) -> Tensor:
    """Where each row of sorted entries starts and ends: (count + 1,)."""
    return torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(rows, minlength=count).cumsum(0)])


def csr(layer: Any, keep: Tensor, x: Tensor) -> nn.Module | None:
    """As torch offers it: CSR products, the weights' gradient by `sampled_addmm`."""
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or isinstance(layer.padding, str)):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")  # which is said once
        other = _Csr(layer, keep)
        other.matrix(other.weight.detach())
    return other


def sparseprop(layer: Any, keep: Tensor, x: Tensor) -> nn.Module | None:
    """SparseProp's layer where its own `sparsify_if_faster` chooses one, above its own limit of 80 % zeros."""
    choose = importlib.import_module("sparseprop.modules").sparsify_if_faster
    if isinstance(layer, nn.Conv2d):
        square = layer.kernel_size[0] == layer.kernel_size[1] and layer.padding in {(p, p) for p in range(9)}
        if not square or layer.groups > 1 or layer.dilation != (1, 1) or layer.stride not in {(1, 1), (2, 2)}:
            return None
    if float(keep.float().mean()) > 0.2:
        return None
    with torch.random.fork_rng():
        other = choose(layer, tuple(x.shape))
    return other if type(other).__module__.startswith("sparseprop") else None


def sparselab(layer: Any, keep: Tensor, x: Tensor) -> nn.Module | None:
    """SparseLab's linear layer; it has no convolution."""
    if not isinstance(layer, nn.Linear):
        return None
    library = importlib.import_module("sparselab")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        other = library.SparseLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, sparsity=0.9)
        # It draws its own mask; storage and parameter replace those, made as its constructor makes them.
        other._csr = library.PaddedCSR.from_dense(layer.weight.detach())
    other._values = nn.Parameter(torch.from_numpy(np.asarray(other._csr.values)))
    other.bias = layer.bias
    return other

"""Layers over kept weights only. Their parameters are the kept values; the rest of a weight is not stored.

A layer has two paths to the same function: *sparse*, with the kernels of this package, and *dense*, which writes the
values into a dense weight for torch's own kernels. Set `layer.path` to switch at any time; parameters stay the same.

They stand in for torch's layers in code that does not know them: same arguments and attributes, a dense `weight`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skeletal.engine.codegen.packed_bf16 import COMPUTES
from skeletal.engine.modules.blocked import Blocked, copy_sharing, storage_type, with_halo
from skeletal.engine.modules.read_only import WRITTEN_TO, ReadOnly
from skeletal.engine.ops.convolution import Convolve
from skeletal.engine.ops.images import Pack, Unpack
from skeletal.engine.ops.linear import Multiply
from skeletal.engine.ops.scatter_weights import ScatterWeights
from skeletal.engine.plan.geometry import Shape
from skeletal.engine.plan.grid import MapGrid, blocks_for
from skeletal.engine.plan.plan import ConvPlan
from skeletal.engine.plan.recent import MOST, recent

_OF_A_CONVOLUTION = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "transposed",
    "output_padding", "padding_mode",
)  # fmt: skip
"""attributes of a convolution that code may read"""
_EXCHANGED = (
    "the weight of a layer over kept weights cannot be exchanged, as by weight norm, spectral norm and"
    " parametrizations: apply those to the dense network, and compile that"
)
_FIXED = {*_OF_A_CONVOLUTION, "in_features", "out_features"}


class Sparse(nn.Module):
    """What convolution and linear layer share: values at the kept positions of a weight.

    Args:
        weight: dense, of any shape; what the mask does not keep is not read.
        mask: bool, of the same shape.
        bias: or None.

    """

    def __init__(self, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        self.path = "sparse"
        self.bf16 = True  # whether maps are bfloat16 under autocast to it
        self.positions = mask.flatten().nonzero().flatten()  # not a buffer: DDP would send it with every step
        values = weight.detach().flatten()[self.positions].clone()
        self._parameters["weight"] = nn.Parameter(values, weight.requires_grad)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)

    @property
    def values(self) -> nn.Parameter:
        """The parameter: kept values, in the order of the mask, registered as `weight`."""
        weight = self._parameters.get("weight")
        if weight is None:
            raise RuntimeError(_EXCHANGED)
        return weight

    @property
    def weight(self) -> Tensor:
        """The weight as code for dense layers reads it: dense, differentiable, 0 where it is pruned."""
        return self.dense_weight().as_subclass(ReadOnly)

    def get_parameter(self, target: str) -> nn.Parameter:
        """The parameter registered under a name."""
        return self.values if target == "weight" else super().get_parameter(target)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            if isinstance(value, nn.Parameter) and value.shape == self.values.shape:  # other kept values
                self._parameters["weight"] = value
                return
            raise AttributeError(WRITTEN_TO)
        if name in _FIXED and name in self.__dict__:
            raise AttributeError(
                f"tables were made for the {name} this layer has: change it on the dense network, and compile that"
            )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name == "weight":
            raise RuntimeError(_EXCHANGED)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter.

        Raises:
            RuntimeError: the layer's weight has been taken out.

        """
        if "weight" not in self._parameters:
            raise RuntimeError(_EXCHANGED)
        super().register_parameter(name, param)

    @property
    def mask(self) -> Tensor:
        """The mask, bool, in the shape of the dense weight."""
        mask = torch.zeros(math.prod(self.shape), dtype=torch.bool, device="cpu")
        mask[self.positions] = True
        return mask.view(self.shape)

    def dense_weight(self) -> Tensor:
        """The weight as a dense tensor, differentiable."""
        return ScatterWeights.apply(self.values, self.positions.to(self.values.device), self.shape)

    def storage_type(self) -> torch.dtype:
        """The type that the sparse path stores maps in."""
        return storage_type(self.values.dtype, self.bf16)

    def tensor_type(self) -> torch.dtype:
        """The type of its output tensors: that of torch's own layers under autocast."""
        return storage_type(self.values.dtype, True)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.shape}, kept={self.values.numel()}, path={self.path!r}"


class SparseConv2d(Sparse):
    """A convolution over kept weights, with all that `torch.nn.Conv2d` offers except padding modes other than zeros.

    Takes and returns a tensor (N, C, H, W), or `Blocked` maps, in which case it also returns its input, for its other
    readers (see `Convolve`).
    """

    def __init__(self, layer: nn.Conv2d, mask: Tensor) -> None:
        super().__init__(layer.weight, mask, layer.bias)
        padding: Any = layer.padding
        if isinstance(padding, str):
            reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            if padding == "same" and any(r % 2 for r in reach):
                raise ValueError(f"padding='same' of an even kernel {layer.kernel_size} is not symmetric")
            padding = tuple(r // 2 for r in reach) if padding == "same" else (0, 0)
        self.geometry = Shape(layer.stride, padding, layer.dilation, layer.groups, layer.kernel_size)  # type: ignore[arg-type]
        self._plans: dict[tuple[MapGrid, int, bool], ConvPlan] = {}
        for name in _OF_A_CONVOLUTION:
            setattr(self, name, getattr(layer, name))

    def fit(self, x: Blocked, halo: int) -> tuple[Blocked, ConvPlan]:
        """Maps and their tables, with halos that suffice: at least `halo` for the output."""
        channels = self.shape[1] * self.geometry.groups
        if x.raw.shape[1] != channels:
            raise ValueError(f"a convolution of {channels} channels got maps of {x.raw.shape[1]}")
        ahead, back = self.geometry.halos(x.grid.height, x.grid.width)
        x = with_halo(x, max(x.grid.halo, ahead))
        return x, self.plan(x.grid, max(halo, back), in_parts=x.raw.dtype in COMPUTES)

    def grids(self, height: int, width: int) -> tuple[MapGrid, MapGrid]:
        """Grids that suffice for maps of a size and for its output."""
        ahead, back = self.geometry.halos(height, width)
        return MapGrid(height, width, ahead), MapGrid(*self.geometry.output(height, width), back)

    def plan(self, source: MapGrid, halo: int, *, in_parts: bool = True) -> ConvPlan:
        """Tables for maps on one grid; `halo` of its output, `in_parts` as in `ConvPlan`."""

        def make() -> ConvPlan:
            target = MapGrid(*self.geometry.output(source.height, source.width), halo)
            return ConvPlan(self.mask, self.geometry, source, target, in_parts=in_parts)

        return recent(self._plans, (source, halo, in_parts), make)

    def forward(self, input: Any, halo: int = 0) -> Any:
        if isinstance(input, Tensor):
            return self._on_images(input)
        x, plan = self.fit(input, halo)
        out, passed = Convolve.apply(x.raw, self.values, self.bias, x.affine, x.fusion, plan, x.examples)
        return Blocked(out, plan.target, x.examples), Blocked(passed, x.grid, x.examples, x.affine)

    def _on_images(self, x: Tensor) -> Tensor:
        g = self.geometry
        if self.path == "dense" or x.device.type != "cpu" or x.dim() != 4:
            return F.conv2d(x, self.dense_weight(), self.bias, g.stride, g.padding, g.dilation, g.groups)
        source, target = self.grids(*x.shape[2:])
        blocked = Blocked(Pack.apply(x, source, self.storage_type()), source, len(x))
        out, _ = self.forward(blocked, target.halo)  # already called as a layer: no hooks again
        return Unpack.apply(out.storage, out.grid, out.examples).to(self.tensor_type())

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseConv2d":
        return copy_sharing(self, memo, "_plans")


class SparseLinear(Sparse):
    """A linear layer over kept weights, on tensors (..., in_features).

    A convolution in disguise: each block of examples is a pixel of a map of one row, so that the batch lies innermost.
    """

    def __init__(self, layer: nn.Linear, mask: Tensor) -> None:
        super().__init__(layer.weight, mask, layer.bias)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._plans: dict[int, ConvPlan] = {}

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if self.path == "dense" or x.device.type != "cpu":
            return F.linear(x, self.dense_weight(), self.bias)
        if x.shape[-1] != self.shape[1]:
            raise ValueError(f"a linear layer of {self.shape[1]} features got a tensor {tuple(x.shape)}")
        examples = x.shape[:-1].numel()
        dtype = self.storage_type()
        plan = self.plan(max(1, blocks_for(examples, dtype)))
        rows = x if x.dim() == 2 else x.reshape(examples, self.shape[1])
        out, _ = Multiply.apply(rows.to(dtype), self.values, self.bias, plan)
        return (out if x.dim() == 2 else out.reshape(*x.shape[:-1], self.shape[0])).to(self.tensor_type())

    def plan(self, blocks: int) -> ConvPlan:
        """Tables for that many blocks of examples, or, where there were many other numbers, for more."""
        if blocks not in self._plans and len(self._plans) >= MOST // 2:
            blocks = 1 << (blocks - 1).bit_length()
        grid, shape = MapGrid(1, blocks, 0), Shape((1, 1), (0, 0), (1, 1), 1, (1, 1))
        return recent(self._plans, blocks, lambda: ConvPlan(self.mask[..., None, None], shape, grid, grid))

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseLinear":
        return copy_sharing(self, memo, "_plans")

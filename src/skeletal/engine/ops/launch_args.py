"""What follows from a plan for maps of one type, and what kernels are told about batch norm."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skeletal.engine.codegen.packed_bf16 import computes, flat, slots, tight
from skeletal.engine.ops.affine import Affine
from skeletal.engine.plan.grid import MapGrid
from skeletal.engine.plan.plan import ConvPlan

_BUFFER = 1 << 17  # bytes of prepared rows: a small part of a core's second-level cache


@dataclass(frozen=True)
class Statistics:
    """What a batch norm normalises by."""

    from_batch: bool
    running_mean: Tensor | None
    running_variance: Tensor | None
    rate: float
    """how far the running ones move towards the batch's"""
    eps: float

    def keep(self, mean: Tensor | None, variance: Tensor | None) -> None:
        """Write the running ones back where kernels took copies of them."""
        for running, used in ((self.running_mean, mean), (self.running_variance, variance)):
            if running is not None and used is not None and used is not running:
                running.copy_(used)


class NormArgs(NamedTuple):
    """Batch norm after a convolution."""

    numbers: list[Tensor | None]
    """running mean and variance, weight, bias"""
    state: tuple[int, int, float, float, np.ndarray]
    """see `fused_batch_norm.shared_forward`"""
    then: Affine
    other: Tensor | None
    materialized: Tensor | None
    mode: int = 1
    """as in `fused_batch_norm.shared_forward`"""


class NormGradArgs(NamedTuple):
    """Batch norm, backward."""

    maps: tuple[Tensor | None, Tensor | None, Tensor | None]
    """its input, its output where that is needed, and memory for the gradient of what was added"""
    state: tuple[int, int, float, float, np.ndarray]
    then: Affine
    grad_numbers: tuple[Tensor | None, Tensor | None]
    """memory for the gradients of weight and bias"""


class Kinds(NamedTuple):
    """Empty arrays that tell kernels their types: like slots, slots of line buffers, numbers of maps, values."""

    slots: np.ndarray
    buffers: np.ndarray
    numbers: np.ndarray
    values: np.ndarray


class LaunchArgs(NamedTuple):
    """What follows from a plan for maps of one type, worked out once."""

    kinds: Kinds
    as_it_is: Affine
    """for maps that need nothing more done"""
    forward: tuple[Any, ...]
    """of x: maps (see `arguments.Maps`) and slots of a block; of the output: grid in slots and in numbers, slots of a
    block, channels"""
    planes: tuple[int, int]
    """numbers of a plane of x, and of the output"""
    no_norm: NormArgs
    no_back: NormGradArgs
    full: bool
    """whether kernels take blocks of weights, see `weight_blocks`"""
    no_weights: np.ndarray
    """like what they take"""


@lru_cache
def kinds(dtype: torch.dtype) -> Kinds:
    """For maps of a type."""
    none = torch.empty(0, dtype=dtype, device="cpu")
    return Kinds(slots(none), tight(slots(none)), flat(none), flat(torch.empty(0, dtype=computes(dtype), device="cpu")))


def launch_args(plan: ConvPlan, dtype: torch.dtype) -> LaunchArgs:
    """What follows from a plan for maps of a type."""
    if dtype not in plan.launch_args:
        full = dtype == torch.bfloat16 and plan.is_full
        found, source, target = kinds(dtype), plan.source, plan.target
        nothing, no_state = Affine(found.values, found.values, False), (0, 0, 0.0, 0.0, np.empty((3, 0)))
        maps = (*source.slots, plan.inputs, _rows(source, plan.inputs, plan.tiling.reach, dtype))
        x_block, out_block = plan.inputs * source.plane, plan.outputs * target.plane
        plan.launch_args[dtype] = LaunchArgs(
            found, nothing, (maps, x_block, target.slots, target.numbers(dtype), out_block, plan.outputs),
            (source.numbers(dtype)[3], target.numbers(dtype)[3]),
            NormArgs([None] * 4, no_state, nothing, None, None, 0),
            NormGradArgs((None, None, None), no_state, nothing, (None, None)),
            full, np.empty(0, np.int32) if full else found.values,
        )  # fmt: skip
    return plan.launch_args[dtype]


def launch_args_back(plan: ConvPlan, dtype: torch.dtype) -> tuple[Any, ...]:
    """Of the output: maps, slots of a block, grid in numbers; the same of x."""
    if (dtype, "back") not in plan.launch_args:
        maps, x_block, *_, out_block, _ = launch_args(plan, dtype).forward
        target, rows = plan.target, _rows(plan.target, plan.outputs, plan.reach_back, dtype)
        output = (*target.slots, plan.outputs, rows), out_block, target.numbers(dtype)
        plan.launch_args[dtype, "back"] = *output, maps, x_block, plan.source.numbers(dtype)
    return plan.launch_args[dtype, "back"]


def _rows(grid: MapGrid, channels: int, reach: int, dtype: torch.dtype) -> int:
    """How many rows a buffer has."""
    row = max(1, channels * grid.row * (8 if dtype == torch.float64 else 4))
    return min(grid.height + 2 * grid.halo, max(reach, _BUFFER // row))

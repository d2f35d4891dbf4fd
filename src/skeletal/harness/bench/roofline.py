"""What this machine can do at most, and how much of it a training step needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from skeletal.compaction.compact import compact
from skeletal.core.diagnosis.macs import count_macs
from skeletal.core.model.preserve import preserve_model

_MOVES_OF_A_WEIGHT = 8
"""read forward and backward, read and written by SGD; its gradient written and read, its momentum read and written"""


@dataclass(frozen=True)
class Machine:
    """Measured, with as many threads as torch uses."""

    float32: float
    """multiply-adds per second of a large matrix product"""
    bfloat16: float
    bandwidth: float
    """bytes per second, read and written, of a large copy"""


@dataclass(frozen=True)
class Work:
    """The least that a training step on one batch needs, estimated."""

    macs: int
    """multiply-adds of masked layers over kept weights, forward and backward"""
    bytes: int
    """maps of convolutions, linear layers and batch norms, and parameters with gradient and momentum (see `work`)"""

    bfloat16: bool = False
    """multiplied in bfloat16, else in float32"""

    def seconds(self, machine: Machine) -> float:
        """The least a step takes by the roofline: it computes and moves at once, at the measured rates."""
        rate = max(machine.bfloat16, machine.float32) if self.bfloat16 else machine.float32
        return max(self.macs / rate, self.bytes / machine.bandwidth)


def measure_machine(size: int = 2048, megabytes: int = 256, seconds: float = 0.5) -> Machine:
    """Time a square matrix product in both precisions, and a copy.

    Args:
        size: of the matrices.
        megabytes: of what is copied, which should be several times the caches.
        seconds: how long each is repeated, at least; the median counts.

    """
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        one, two = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        out = torch.empty_like(one)
        rates.append(size**3 / _median(lambda one=one, two=two, out=out: torch.mm(one, two, out=out), seconds))
    source = torch.zeros(megabytes * 2**18)
    target = torch.ones_like(source)
    moved = 2 * source.numel() * source.element_size()
    return Machine(rates[0], rates[1], moved / _median(lambda: target.copy_(source), seconds))


def _median(call: Callable[[], object], seconds: float) -> float:
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median


def work(model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor, *, dense: bool, size: int = 4) -> Work:
    """Multiply-adds and bytes of a training step.

    Bytes count each layer by itself: forward it reads its input and writes its output; backward it reads
    its input and the output's gradient and writes the input's. Additions and activations may join their neighbours
    and count nothing, nor do tables of indices.

    Args:
        model: not changed.
        mask: of this model.
        inputs: (N, C, H, W), a batch.
        dense: all weights of the network as it is; else kept weights of what `compact` leaves.
        size: bytes of a number of a map: 4, or 2 for bfloat16, which is then multiplied, too. Weights are float32.

    """
    batch = (inputs[:1], None)
    if not dense:
        compacted = compact(model, mask, batch)
        model, mask = compacted.model, compacted.mask
    with preserve_model(model, training=False, seed=0):
        macs = count_macs(model, mask, batch)
        maps = _map_elements(model, inputs[:1])
    pruned = 0 if dense else sum(int((~keep).sum()) for keep in mask.values())
    weights = sum(parameter.numel() for parameter in model.parameters()) - pruned
    per_example = macs.training_dense if dense else macs.training_kept
    moved = size * maps * len(inputs) + 4 * _MOVES_OF_A_WEIGHT * weights
    return Work(per_example * len(inputs), moved, bfloat16=size == 2)


@torch.no_grad()
def _map_elements(model: nn.Module, inputs: Tensor) -> int:
    moved = 0

    def note(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal moved
        moved += 3 * args[0].numel() + 2 * output.numel()

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, kinds)]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return moved

"""Which layers run sparse: what was measured faster."""

import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skeletal.core.diagnosis.probing import outputs_of
from skeletal.core.files import write_atomically
from skeletal.core.model.batches import forward
from skeletal.core.model.preserve import preserve_mode, preserve_random_state
from skeletal.engine.modules.blocked import Blocked, ToBlocks
from skeletal.engine.modules.layers import Sparse, SparseConv2d

_REPEATS = 3
_KERNELS = 3
"""counts up when kernels change so much that earlier choices say nothing"""
_HOPELESS = 3.0  # times the fastest so far, at the first call: not worth measuring better


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer by itself, forward and backward; None where it was not measured."""

    name: str
    shape: tuple[int, ...]
    kept: int
    path: str
    sparse: float | None
    dense: float | None


@dataclass(frozen=True)
class EngineReport:
    """What a compiled network does with each layer, and how long a training step took in every way tried."""

    layers: tuple[LayerTimes, ...]
    steps: dict[str, float]
    """milliseconds of forward and backward of the whole network, by way; empty where nothing was measured"""
    chosen: str
    removed: str
    """what removing dead channels has done"""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self.layers), 0)
        lines = [f"{'layer':{width}}  {'shape':>18}  {'kept':>9}  {'density':>8}  path     sparse ms   dense ms"]
        for layer in self.layers:
            total = max(1, torch.Size(layer.shape).numel())
            times = [f"{'-' if ms is None else f'{ms:.2f}':>9}" for ms in (layer.sparse, layer.dense)]
            shape = "x".join(map(str, layer.shape))
            what = f"{layer.name:{width}}  {shape:>18}  {layer.kept:9,}  {layer.kept / total:8.5f}"
            lines.append(f"{what}  {layer.path:6}  {times[0]}  {times[1]}")
        lines += ["", f"way: {self.chosen}"]
        lines += [f"  {way:24} {ms:10.1f} ms a step" for way, ms in self.steps.items()]
        lines += ["", self.removed, *self.notes]
        return "\n".join(lines)


def median_ms(call: Callable[[], Any], hopeless: float = math.inf) -> float:
    """The median of several calls, in milliseconds, after one that does not count.

    Where even that one took longer than `hopeless` milliseconds, its time has to do.
    """
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
        if times[0] > hopeless:
            return times[0]
    return statistics.median(times[1:])


def layer_times(layer: Sparse, shape: tuple[int, ...]) -> tuple[float, float]:
    """Milliseconds of a layer on inputs of a shape, forward and backward: sparse and dense."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(layer.weight.dtype)
    path = layer.path
    try:
        layer.path = "sparse"
        if isinstance(layer, SparseConv2d):
            source, target = layer.grids(*shape[2:])
            packed = ToBlocks(source.halo, layer.weight.dtype)(x)
            storage = packed.storage.requires_grad_()

            def sparse() -> None:
                out, _ = layer(Blocked(storage, source, shape[0]), target.halo)
                torch.autograd.grad(out.storage, (storage, layer.weight), out.storage)
        else:

            def sparse() -> None:
                _there_and_back(layer, x)

        found = median_ms(sparse)
        layer.path = "dense"
        dense = math.inf
        for order in [torch.contiguous_format, *([torch.channels_last] if x.dim() == 4 else [])]:
            images = x.contiguous(memory_format=order)
            dense = min(dense, median_ms(lambda images=images: _there_and_back(layer, images), _HOPELESS * found))
        return found, dense
    finally:
        layer.path = path


def _there_and_back(layer: Sparse, x: Tensor) -> None:
    x = x.detach().requires_grad_()
    out = layer(x)
    torch.autograd.grad(out, (x, layer.weight), out.detach())


def step_ms(network: nn.Module, batch: Any, best: float = math.inf) -> float:
    """Milliseconds of a forward and backward pass in train mode; the network is left as found.

    Measured roughly where it is far slower than `best`.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    gradients = [(p, p.grad) for p in network.parameters()]

    def step() -> None:
        outputs = [output for output in outputs_of(forward(network, batch)) if output.requires_grad]
        if outputs:
            torch.autograd.backward(
                [F.mse_loss(output.float(), torch.zeros_like(output.float())) for output in outputs]
            )

    try:
        with preserve_random_state(network), preserve_mode(network, training=True), torch.enable_grad():
            return median_ms(step, _HOPELESS * best)
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])


def cache_key(parts: Iterable[Any]) -> str:
    """What a choice depends on: the network's shapes, the batch's, and the host."""
    host = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), os.uname().machine)
    name = ""
    with suppress(OSError):
        name = next(
            (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
        )
    autocast = torch.is_autocast_enabled("cpu"), str(torch.get_autocast_dtype("cpu"))
    return hashlib.sha256(repr((list(parts), host, name, autocast, _KERNELS)).encode()).hexdigest()[:24]


def _cache_file(key: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "skeletal" / f"choice-{key}.json"


def remembered(key: str) -> dict[str, Any] | None:
    """An earlier choice on this host, or None."""
    try:
        found = json.loads(_cache_file(key).read_text())
    except (OSError, ValueError):
        return None
    fits = isinstance(found, dict) and {"chosen", "steps", "sparse", "times"} <= found.keys()
    return found if fits else None


def remember(key: str, choice: dict[str, Any]) -> None:
    """Write a choice down for later processes; where that is not possible, they measure again."""
    with suppress(OSError):
        path = _cache_file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(choice).encode())

"""Which layers run sparse: those measured to be faster that way."""

import hashlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skeletal.core.diagnosis.probing import outputs_of
from skeletal.core.model.batches import forward, map_tensors
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.model.preserve import preserve_mode, preserve_random_state, preserve_values
from skeletal.core.model.state.snapshot import Snapshot
from skeletal.core.progress import stage
from skeletal.engine.host import cache
from skeletal.engine.host.processor import processor
from skeletal.engine.modules.blocked import Blocked, ToBlocks
from skeletal.engine.modules.layers import Sparse, SparseConv2d
from skeletal.engine.report import DENSE_LAST, FULL

_REPEATS = 3
_KERNELS = 4
"""raised when kernels change so much that earlier choices mean nothing"""
_HOPELESS = 3.0  # times the fastest so far, at the first call: not worth measuring again


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
    x = torch.randn(shape, generator=generator, device="cpu").to(layer.values.dtype)
    path = layer.path
    try:
        layer.path = "sparse"
        if isinstance(layer, SparseConv2d):
            source, target = layer.grids(*shape[2:])
            packed = ToBlocks(layer, source.halo)(x)
            storage = packed.storage.requires_grad_()

            def sparse() -> None:
                out, _ = layer(Blocked(storage, source, shape[0]), target.halo)
                torch.autograd.grad(out.storage, (storage, layer.values), out.storage)
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
    torch.autograd.grad(out, (x, layer.values), out.detach())


def step_ms(network: nn.Module, batch: Any, best: float = math.inf) -> float:
    """Milliseconds of a forward and backward pass in train mode; the network is left as found.

    Measured roughly where it is far slower than `best`.
    """
    gradients = [(p, p.grad) for p in network.parameters()]

    def step() -> None:
        outputs = [output for output in outputs_of(forward(network, batch)) if output.requires_grad]
        if outputs:
            torch.autograd.backward(
                [F.mse_loss(output.float(), torch.zeros_like(output.float())) for output in outputs]
            )

    try:
        alone = preserve_random_state(network), preserve_mode(network, training=True), preserve_values(network)
        with alone[0], alone[1], alone[2], torch.enable_grad():
            return median_ms(step, _HOPELESS * best)
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _with_code_of_its_own(network: nn.Module) -> list[nn.Module]:
    """The outermost parts that are neither torch's nor ours: their forward pass may write to attributes."""
    found: dict[str, nn.Module] = {}
    for name, part in network.named_modules():
        foreign = type(part).__module__.partition(".")[0] not in ("torch", "skeletal")
        if foreign and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = part
    return list(found.values())


def measure(
    network: Any, layers: Mapping[str, Sparse], shapes: Mapping[str, tuple[int, ...]], example: Any
) -> dict[str, Any]:
    """Time every layer by itself, then whole training steps: all sparse, all dense, each the faster way.

    Under autocast to bfloat16, all of that runs in bfloat16, and all sparse also on maps in float32.

    Args:
        network: compiled; left with the paths of the way that was timed last.
        layers: its sparse layers, by name.
        shapes: of what they read, where that is known.
        example: a batch for whole steps.

    Returns:
        What `remember` keeps.

    """
    with flush_denormals():
        times = {name: layer_times(layers[name], shape) for name, shape in shapes.items() if name in layers}
        mixed = {name: "dense" if name in times and times[name][1] < times[name][0] else "sparse" for name in layers}
        ways = {
            "sparse": dict.fromkeys(layers, "sparse"),
            "dense": dict.fromkeys(layers, "dense"),
            DENSE_LAST: dict.fromkeys(layers, "dense"),
        }
        if len(set(mixed.values())) > 1:
            ways["each as was faster"] = mixed
        if any(layer.storage_type() == torch.bfloat16 for layer in layers.values()):
            ways[f"sparse, {FULL}"] = ways["sparse"]
        steps = {}
        for way, paths in ways.items():
            network.repeat(paths, way)
            steps[way] = step_ms(network, example, min(steps.values(), default=math.inf))
    chosen = min(steps, key=steps.__getitem__)
    sparse = [name for name, path in ways[chosen].items() if path == "sparse"]
    return {"chosen": chosen, "steps": steps, "sparse": sparse, "times": times}


def fastest(
    network: Any, layers: Mapping[str, Sparse], shapes: Mapping[str, tuple[int, ...]], example: Any
) -> dict[str, Any]:
    """What `measure` finds, or has found on this host before for such layers and such a batch."""
    examples = []
    map_tensors(lambda tensor: examples.append((tuple(tensor.shape), str(tensor.dtype))) or tensor, example)
    kept = [(name, layer.shape, layer.values.numel(), layer.values.dtype) for name, layer in layers.items()]
    key = cache_key([examples, kept])
    choice = remembered(key)
    if choice is None or not set(choice["sparse"]) <= set(layers):
        before = [Snapshot(part) for part in _with_code_of_its_own(network)]  # which may leave things behind
        with stage("compiling kernels and measuring what is fastest, once for these shapes and this CPU"):
            choice = measure(network, layers, shapes, example)
        for snapshot in before:
            snapshot.restore()
        remember(key, choice)
    return choice


def cache_key(parts: Iterable[Any]) -> str:
    """What a choice depends on: the network's shapes, the batch's, and the host."""
    known = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), os.uname().machine)
    autocast = torch.is_autocast_enabled("cpu"), str(torch.get_autocast_dtype("cpu"))
    found = repr((list(parts), known, processor("model name"), autocast, _KERNELS))
    return hashlib.sha256(found.encode()).hexdigest()[:24]


def remembered(key: str) -> dict[str, Any] | None:
    """An earlier choice on this host, or None."""
    found = cache.remembered(f"choice-{key}")
    return found if found is not None and {"chosen", "steps", "sparse", "times"} <= found.keys() else None


def remember(key: str, choice: dict[str, Any]) -> None:
    """Record a choice for later processes; if that is not possible, they measure again."""
    cache.remember(f"choice-{key}", choice)

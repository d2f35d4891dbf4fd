"""`skeletal.compile`: train and run a skeleton at the cost of what is left of it."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.compaction.compact import compact, differentiable_too
from skeletal.core.choices import require
from skeletal.core.masks.mask import Mask
from skeletal.core.model.preserve import device_of, differentiable, preserve_attributes
from skeletal.core.model.weights import prunable_weights, unwrap
from skeletal.core.progress import shown
from skeletal.engine.compiled import PATHS, Compiled, maps_here
from skeletal.engine.dense_compact import dense_compact
from skeletal.engine.host.availability import available


def compile(
    model: nn.Module,
    mask: Mapping[str, Tensor] | None,
    example: Any,
    *,
    path: str = "auto",
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Compiled:
    """Make a masked network faster and smaller: the same function and gradients, at the cost of the kept weights.

    Dead channels are removed (see `compact`); convolutions and linear layers run over kept weights only; batch norm,
    addition and ReLU join them. Masked weights become vectors of kept values, so gradients and optimizer state shrink,
    too. Everything else (attention, layer norm, ...) runs as before.

    Args:
        model: any module; not changed. A network that torch.fx cannot trace keeps its own forward pass, in which only
            its linear layers and convolutions are exchanged.
        mask: of this model; None keeps all weights, which pays off in bfloat16 on a CPU with a matrix unit.
        example: a batch of the size you train with: a tensor of inputs, or as `prune` takes them. Other sizes stay
            correct; what is fastest is measured for this one.
        path: "auto" measures each layer, then whole training steps, and takes the fastest, dense ones included;
            remembered for these shapes and this host. "sparse" and "dense" force one.
        dtype: what you train in: `torch.bfloat16` measures as under autocast to it, `torch.float32` without, None as
            it is where this is called. What finally counts is the autocast around each forward pass, or inputs in
            bfloat16: then sparse layers keep maps and their gradients in bfloat16, half the memory to read and write,
            and parameters, arithmetic and statistics in float32.
        progress: say on stderr what takes time: kernels are compiled once per machine, in about half a minute.

    Returns:
        A module to train and run instead of the model: create the optimizer on *its* parameters. `to_dense()` gives
        the original architecture back. A model on a GPU, where there are no such kernels, becomes its compact network
        of widths in multiples of 8, channels last, with masked weights dense and held at 0; `report` says how many
        multiply-adds are left, and you can apply `torch.compile` to it as to any module. Where the kernels do not work
        on a CPU (see `skeletal.engine.available`) it runs dense, masked weights held at 0, and its report says why.

    Warns:
        UserWarning: the kernels do not work, and `path` is not "dense".

    Raises:
        MaskError: the mask belongs to another model.
        ValueError: the model does not run on the example; an unknown path; a type other than those two.

    """
    require("path", path, PATHS)
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"dtype has to be torch.float32 or torch.bfloat16, not {dtype}")
    if mask is None:
        mask = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(unwrap(model)).items()
        }
    mask = mask if isinstance(mask, Mask) else Mask(mask)
    batch = (example, None) if isinstance(example, Tensor) else example
    with differentiable():  # in inference mode, parameters would be made that cannot be trained
        return _compiled(model, mask, differentiable_too(batch), path, dtype, progress)


def _compiled(
    model: nn.Module, mask: Mask, batch: Any, path: str, dtype: torch.dtype | None, progress: bool
) -> Compiled:
    if device_of(model).type != "cpu":
        return _without_kernels(model, mask, batch, path)
    autocast = nullcontext() if dtype is None else torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16)
    with shown(True) if progress else nullcontext(), preserve_attributes(model):
        compacted = compact(model, mask, batch)
        with autocast:
            if path != "dense":
                available(maps_here())  # in bfloat16 both types are of use: both are checked at the same time
        compiled = Compiled(compacted, mask, batch)
        with autocast:
            compiled.use(path)
    return compiled


def _without_kernels(model: nn.Module, mask: Mask, batch: Any, path: str) -> Compiled:
    compiled = Compiled(dense_compact(model, mask, batch), mask, batch, sparse=False)
    compiled.use(path)
    return compiled

"""How a compiled network is pickled: as the dense network it stands for, with what was chosen and set since."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.compaction.compact import compact
from skeletal.compaction.tracing.trace import state_tensors, take_modes, take_trainable
from skeletal.core.masks.mask import Mask
from skeletal.core.model.batches import map_tensors
from skeletal.core.model.tensors import Tensors
from skeletal.engine.dense_compact import dense_compact


def again(
    kind: Any,
    dense: nn.Module,
    mask: tuple[Tensors, dict[str, Any]],
    example: Any,
    paths: Mapping[str, str],
    chosen: str,
    state: tuple[Mapping[str, bool], Mapping[str, bool]],
    sparse: bool = True,
    narrow: bool = False,
) -> Any:
    """The compiled network that a pickle stands for.

    Args:
        kind: `Compiled`, which this file cannot import, as that one imports this.
        dense: its weights in the original architecture.
        mask: with its metadata.
        example: the batch that it was compiled for.
        paths: of its layers.
        chosen: the name that they are chosen under.
        state: modes and what is trainable, by name.
        sparse: whether its layers were exchanged.
        narrow: whether some layers have a type since in which they could not be exchanged.

    """
    whole, batch = Mask(*mask), example
    types = {name: tensor.dtype for name, tensor in state_tensors(dense).items()}
    if narrow:  # layers that were exchanged before their type became one in which they would not be
        dense, batch = dense._apply(_widened), map_tensors(_widened, example)
    compacted = compact(dense, whole, batch) if sparse else dense_compact(dense, whole, batch)
    compiled = kind(compacted, whole, example, sparse=sparse)
    compiled.repeat(paths, chosen)
    modes, trainable = state
    take_modes(compiled, modes, modes[""])
    take_trainable(compiled.network, trainable)
    if narrow:
        for name, tensor in state_tensors(compiled.network).items():
            tensor.data = tensor.data.to(types.get(name, tensor.dtype))
    return compiled


def is_narrow(value: Tensor) -> bool:
    """Whether a tensor is of a type in which layers cannot be exchanged, as half precision."""
    return value.is_floating_point() and value.dtype not in (torch.float32, torch.float64)


def _widened(value: Tensor) -> Tensor:
    return value.float() if is_narrow(value) else value

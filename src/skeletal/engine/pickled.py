"""How a compiled network is pickled: as the dense network it stands for, with what was chosen and set since."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.compaction.compact import compact
from skeletal.compaction.tracing.trace import state_tensors, take_modes, take_trainable
from skeletal.core.masks.mask import Mask
from skeletal.core.model.batches import map_tensors
from skeletal.core.model.tensors import Tensors
from skeletal.engine.dense_compact import dense_compact
from skeletal.engine.hooks import hooks_of, hooks_since, put_around, take_hooks

_REGISTERED = ("_parameters", "_buffers", "_modules")


def again(
    kind: Any,
    dense: nn.Module,
    mask: tuple[Tensors, dict[str, Any]],
    example: Any,
    paths: Mapping[str, str],
    chosen: str,
    state: tuple[Mapping[str, bool], Mapping[str, bool], Tensors],
    sparse: bool,
    narrow: bool,
) -> Any:
    """The compiled network that a pickle stands for.

    Args:
        kind: `Compiled`, which this file cannot import, as that one imports this.
        dense: its weights in the original architecture.
        mask: with its metadata.
        example: the batch that it was compiled for.
        paths: of its layers.
        chosen: the name that they are chosen under.
        state: modes and what is trainable, by name; and what was 0, as `zeros_in` has found.
        sparse: whether its layers were exchanged.
        narrow: whether some layers have a type since in which they could not be exchanged.

    """
    whole, batch = Mask(*mask), example
    modes, trainable, zeros = state
    values = _become_zero_as_then(dense, zeros)
    types = {name: tensor.dtype for name, tensor in state_tensors(dense).items()}
    if narrow:  # layers that were exchanged before their type became one in which they would not be
        dense, batch = dense._apply(_widened), map_tensors(_widened, example)
    compacted = compact(dense, whole, batch) if sparse else dense_compact(dense, whole, batch)
    compiled = kind(compacted, whole, example, sparse=sparse)
    compiled.repeat(paths, chosen)
    take_modes(compiled, modes, modes[""])
    take_trainable(compiled.network, trainable)
    if narrow:
        for name, tensor in state_tensors(compiled.network).items():
            tensor.data = tensor.data.to(types.get(name, tensor.dtype))
    if values:
        compiled.load_state_dict(values, strict=False)
    return compiled


def zeros_in(model: nn.Module, mask: Tensors) -> Tensors:
    """Which entries are 0 of what channels are removed by: biases, means, whatever is no masked weight."""
    return {
        name: tensor.detach().eq(0).flatten().nonzero().flatten().cpu()
        for name, tensor in state_tensors(model).items()
        if tensor.is_floating_point() and (tensor.dim() <= 1 or name not in mask)
    }


@torch.no_grad()
def _become_zero_as_then(dense: nn.Module, zeros: Tensors) -> Tensors:
    """Have the zeros of when channels were removed, as the same ones have to go again; the values that this changes."""
    changed = {}
    for name, value in dense.state_dict().items():
        if name in zeros:
            then = torch.zeros(value.numel(), dtype=torch.bool, device="cpu").index_fill_(0, zeros[name], True)
            then = then.view(value.shape).to(value.device)
            if not torch.equal(then, value.eq(0)):
                changed[name] = value.clone()
                value.masked_fill_(value.eq(0), 1).masked_fill_(then, 0)
    return changed


def is_narrow(value: Tensor) -> bool:
    """Whether a tensor is of a type in which layers cannot be exchanged, as half precision."""
    return value.is_floating_point() and value.dtype not in (torch.float32, torch.float64)


def _widened(value: Tensor) -> Tensor:
    return value.float() if is_narrow(value) else value


def of_its_own(compiled: Any, made: Container[str]) -> dict[str, Any]:
    """What a user has added to a compiled network: attributes, but those that it was made with, parts, and hooks."""
    added = {
        name: value for name, value in vars(compiled).items() if name not in made and name != "_compiled_call_impl"
    }
    registered = {kind: {**vars(compiled)[kind]} for kind in _REGISTERED}
    del registered["_modules"]["network"]
    hooks = hooks_since(compiled.network, compiled._original.blueprint), hooks_of(compiled)
    return {"added": added, "registered": registered, "hooks": hooks}


def take_own(compiled: Any, own: dict[str, Any]) -> None:
    """Give a compiled network what `of_its_own` has found."""
    vars(compiled).update(own["added"])
    for kind, registered in own["registered"].items():
        vars(compiled)[kind].update(registered)
    of_parts, of_all = own["hooks"]
    take_hooks(compiled.network, of_parts)
    put_around(compiled, of_all)

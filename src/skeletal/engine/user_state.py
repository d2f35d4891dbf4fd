"""A compiled network's state as its user knows it: the original network's names and shapes, both ways."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skeletal.compaction.tracing.trace import state_tensors
from skeletal.core.model.preserve import differentiable
from skeletal.core.model.tensors import Tensors

EXTRA = "_extra_state"


@dataclass
class _Note:
    """A tensor that was handed out."""

    name: str
    holder: weakref.ref[Tensor]
    alias: Tensor
    """the same memory, with the same count of writes, for when nobody holds the tensor itself any more"""
    writes: int
    """how many there were when it was handed out or looked at last"""
    own: Tensor | None
    """what the network itself had there then; None where it has nothing"""


class Handed:
    """The tensors that `state_dict` handed out, to find out whether they were written to, as long as somebody may.

    Those of an ordinary module are its own memory, and averages of weights (timm's ModelEmaV2 and V3, YOLO's) write to
    it. Here they are dense copies: what was written is taken over before the network is used again, even if whoever
    wrote it has let go of it.
    """

    def __init__(self) -> None:
        self._notes: dict[int, _Note] = {}

    def out(self, state: dict[str, Any], own: Tensors) -> None:
        """Note what is handed out, and the network's own values."""
        notes, own = self._notes, {name: value.detach().clone() for name, value in own.items() if name in state}
        for name, value in state.items():
            if isinstance(value, Tensor) and not name.endswith(EXTRA):
                alias = value.detach()
                key = id(alias)
                holder = weakref.ref(value, lambda _, key=key: _let_go(notes, key))
                notes[key] = _Note(name, holder, alias, value._version, own.get(name))

    @property
    def any(self) -> bool:
        """Whether anything was handed out that may have been written to."""
        return len(self._notes) > 0  # torch.compile (2.14) makes no guard of a dict's truth value, nor of __bool__

    def written(self) -> list[_Note]:
        """What has been written to since it was handed out or was here last."""
        found = [note for note in list(self._notes.values()) if note.alias._version != note.writes]
        for note in found:
            note.writes = note.alias._version
            if note.holder() is None:
                del self._notes[id(note.alias)]
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handed":
        return Handed()  # the copy has handed out nothing


def _let_go(notes: dict[int, _Note], key: int) -> None:
    """Nobody holds this tensor any more: forget it, unless something was written that is still to be taken over."""
    note = notes.get(key)
    if note is not None and note.alias._version == note.writes:
        del notes[key]


@torch._disable_dynamo  # how often a tensor was written to is not known inside a graph
@differentiable()
def load_written(network: Any) -> None:
    """Load what was written into the tensors of a compiled network's `state_dict`.

    Raises:
        RuntimeError: the network has had other values since one of them was handed out, by training for instance.

    """
    written = network.handed.written()
    if written:
        _refuse_overtaken(written, state_tensors(network.network))
        network.load_state_dict({note.name: note.alias for note in written}, strict=False)
        own = state_tensors(network.network)
        for note in written:
            note.own = own[note.name].detach().clone() if note.name in own else None


def _refuse_overtaken(written: Iterable[_Note], own: Tensors) -> None:
    seen = set()
    for note in written:
        now = own.get(note.name)
        if note.name in seen or (now is not None and note.own is not None and not _same(note.own, now.detach())):
            raise RuntimeError(
                f"`{note.name}` was written to in a copy of the network's state that is out of date, as state_dict()"
                " handed it out before the network was trained or loaded, or before another copy was written to."
                " Nothing was taken over: write to a new state_dict(), or use load_state_dict()"
            )
        seen.add(note.name)


def _same(before: Tensor, now: Tensor) -> bool:
    return before.shape == now.shape and torch.allclose(before.to(now), now, rtol=0, atol=0, equal_nan=True)


@differentiable()
def to_user(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Replace the network's own entries with those of the original: a hook after `state_dict`."""
    for name in [name for name in state if name.startswith(f"{prefix}network.")]:
        del state[name]
    dense = module.to_dense().state_dict()
    module.handed.out(dense, state_tensors(module.network))
    state.update({f"{prefix}{name}": value for name, value in dense.items()})


@differentiable()
def from_user(
    module: Any,
    state: dict[str, Any],
    prefix: str,
    _: Any,
    __: bool,
    missing: list[str],
    unexpected: list[str],
    ___: Any,
) -> None:
    """Replace entries of the original network with the compact one's own: a hook before `load_state_dict`."""
    load_written(module)  # before, and not after, what is loaded now
    given = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    values, not_there, too_many = module._original.take(module.to_dense(), given)
    missing += [prefix + name for name in not_there]
    unexpected += [prefix + name for name in too_many]
    for name, weight in module._elsewhere.items():
        weight.detach().copy_(values[name])
    sparse = {f"{name}.weight": layer for name, layer in module.sparse_layers().items()}
    for name, own in module.network.state_dict().items():
        value = values.get(name, given.get(name, own))  # extra states are no tensors of the original
        state[f"{prefix}network.{name}"] = value.flatten()[sparse[name].positions] if name in sparse else value

"""A compiled network's state as its user knows it: the original network's names and shapes, both ways."""

import weakref
from typing import Any

import torch
from torch import Tensor


class Handed:
    """The tensors that `state_dict` handed out and that somebody still holds, to find out whether they were written to.

    Those of an ordinary module are its own memory, and averages of weights (timm's ModelEmaV2 and V3, YOLO's) write to
    it. Here they are dense copies: what was written is taken over before the network is used again.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[str, weakref.ref[Tensor], int]] = {}

    def out(self, state: dict[str, Any]) -> None:
        """Note what is handed out."""
        tensors = self._tensors
        for name, value in state.items():
            if isinstance(value, Tensor):
                key = id(value)
                reference = weakref.ref(value, lambda _, key=key: tensors.pop(key, None))
                tensors[key] = name, reference, value._version

    @property
    def any(self) -> bool:
        """Whether anything was handed out that may have been written to."""
        return len(self._tensors) > 0  # torch.compile (2.14) makes no guard of a dict's truth value, nor of __bool__

    def written(self) -> dict[str, Tensor]:
        """What has been written to since it was handed out or was here last, by name."""
        found = {}
        for key, (name, reference, version) in list(self._tensors.items()):
            value = reference()
            if value is not None and value._version != version:
                found[name] = value
                self._tensors[key] = name, reference, value._version
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handed":
        return Handed()  # the copy has handed out nothing


@torch._disable_dynamo  # how often a tensor was written to is not known inside a graph
def load_written(network: Any) -> None:
    """Load what was written into the tensors of a compiled network's `state_dict`."""
    if written := network.handed.written():
        network.load_state_dict(network.to_dense().state_dict() | written)


def to_user(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Replace the network's own entries with those of the original: a hook after `state_dict`."""
    for name in [name for name in state if name.startswith(f"{prefix}network.")]:
        del state[name]
    dense = module.to_dense().state_dict()
    module.handed.out(dense)
    state.update({f"{prefix}{name}": value for name, value in dense.items()})


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
    values, not_there, too_many = module._original.take(given)
    missing += [prefix + name for name in not_there]
    unexpected += [prefix + name for name in too_many]
    sparse = {f"{name}.weight": layer for name, layer in module.sparse_layers().items()}
    for name in module.network.state_dict():
        if name in values:
            value = values[name]
            state[f"{prefix}network.{name}"] = value.flatten()[sparse[name].positions] if name in sparse else value

"""Plain attributes that a network's own code changes as it trains: counters and flags, which no `state_dict` holds."""

from collections import deque
from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Any

from torch import Tensor, nn

from skeletal.core.model.state.random_state import generator_state, is_generator
from skeletal.core.model.state.reach import EVERY_MODULES, is_own

PLAIN = (int, float, bool, str, NoneType)
_CONTAINERS = (list, dict, set, deque)


class Attributes:
    """The attributes of a network's modules as they are now, but not of those of torch's or our own classes."""

    def __init__(self, network: nn.Module, changed: Iterable[str] = ()) -> None:
        self._before = {name: _noted(value) for name, value in _attributes(network)}
        self._known = frozenset(changed)

    def of_another_form(self, network: nn.Module, other: nn.Module) -> "Attributes":
        """Those of another form of the network, whose objects are copies; what had changed before counts as changed."""
        return Attributes(other, [name for name, _ in self._others(network)])

    def changed(self, network: nn.Module) -> dict[str, Any]:
        """The plain values (numbers, text, None) that are others by now, as "module.attribute"."""
        return {name: value for name, value in self._others(network) if type(value) in PLAIN}

    def lost(self, network: nn.Module) -> list[str]:
        """Names of what has changed and is not plain: containers, tensors, random generators, and replaced objects."""
        return [name for name, value in self._others(network) if type(value) not in PLAIN]

    def restore(self, network: nn.Module) -> None:
        """Put back the plain values that have changed."""
        values = {name: self._before[name] for name in self.changed(network) if name in self._before}
        set_attributes(network, {name: value for name, value in values.items() if type(value) in PLAIN})

    def _others(self, network: nn.Module) -> Iterator[tuple[str, Any]]:
        for name, value in _attributes(network):
            known = name in self._before and name not in self._known
            if not known or not _same(_noted(value), self._before[name]):
                yield name, value


def set_attributes(network: nn.Module, values: Any) -> None:
    """Give a network's modules what `Attributes.changed` gave; the values may be a stranger's.

    Raises:
        TypeError: they are no plain values, or the network has no such module.

    """
    parts = dict(network.named_modules())
    if not isinstance(values, dict):
        raise TypeError(f"a network's attributes are {type(values).__name__}")
    for name, value in values.items():
        path, _, attribute = str(name).rpartition(".")
        if path not in parts or not is_own(parts[path]) or attribute in EVERY_MODULES or type(value) not in PLAIN:
            raise TypeError(f"the network has no {name!r} to set to {type(value).__name__}")
        parts[path].__dict__[attribute] = value


def _attributes(network: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, part in network.named_modules():
        if is_own(part):
            for name, value in vars(part).items():
                computed = f"{name}_v" in part._parameters or f"{name}_orig" in part._parameters  # torch's older norms
                if name not in EVERY_MODULES and not computed:
                    yield f"{path}.{name}".removeprefix("."), value


def _noted(value: Any) -> Any:
    """What tells later whether a value is the same: of containers also their things, of generators their state."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        return value, 0 if value.is_inference() else value._version
    if isinstance(value, _CONTAINERS):
        return value, list(value.items() if isinstance(value, dict) else value)
    return (value, generator_state(value)) if is_generator(value) else (value,)


def _same(one: Any, two: Any) -> bool:
    if type(one) is not type(two):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(_same(a, b) for a, b in zip(one, two, strict=True))
    return one is two or (type(one) in PLAIN and one == two)

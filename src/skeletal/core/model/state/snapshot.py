"""Everything attached to a model besides the values of its parameters and buffers: noted, restored, copied."""

import copy
from collections import deque
from collections.abc import Callable, Container
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from skeletal.core.model.state.random_state import is_generator, state_setter
from skeletal.core.model.state.reach import (
    ATOMS,
    CONTAINERS,
    EVERY_MODULES,
    Found,
    is_array,
    is_own,
    places,
    reachable,
    registered,
    slots,
)

Model = TypeVar("Model", bound=nn.Module)

_REGISTRIES = ("", "_parameters", "_buffers", "_modules")


class _Held(NamedTuple):
    where: Found
    before: Any


class _Gradient(NamedTuple):
    """What a tensor's `.grad` was, and its values then."""

    of: Tensor
    before: Tensor | None
    version: tuple[Any, ...]
    value: Tensor | None


class Snapshot:
    """The attributes of a model and of all its modules as they are now, and the contents of what they hold.

    Lists, dicts, sets, arrays, plain objects, and whatever functions can reach are followed; this includes hooks,
    registries, caches and modules outside the registries. Values are also kept, except those of parameters and
    buffers: these are up to the code that gives the model stand-ins for them (see `preserve.state_of`). Gradients of
    all tensors are kept, and the states of random generators.

    Args:
        model: whose attributes they are.
        beside: another module or function, such as a loss, with all that it can reach, its own parameters' values
            included, but not the containers that a function holds, in which it may keep a record.

    """

    def __init__(self, model: nn.Module, beside: object = None) -> None:
        own = {id(tensor) for module in model.modules() for tensor in registered(module)}
        self._containers: list[_Held] = []
        self._tensors: list[tuple[Found, tuple[Any, ...], Tensor]] = []
        self._of: dict[int, list[_Held]] = {}
        self._gradients: list[_Gradient] = []
        self._generators: list[Callable[[], None]] = []
        for found in reachable(model, beside):
            if is_generator(found.value):
                self._generators.append(state_setter(found.value))
                continue
            if isinstance(found.value, Tensor) and found.value.is_leaf:
                self._gradients.append(_gradient(found.value))
            if not isinstance(found.value, Tensor):
                if not isinstance(found.owner, nn.Module):
                    continue
                held = _Held(found, _contents(found.value))
                self._containers.append(held)
                self._of.setdefault(id(found.owner), []).append(held)
            elif id(found.value) not in own and not found.value.is_meta:
                self._tensors.append((found, _version(found.value), found.value.detach().clone()))

    def restore(self) -> None:
        """Put back what has changed."""
        for where, before in self._containers:
            if not _alike(where.value, before):
                _put_back(where.value, before)
        for (tensor, _, _), version, value in self._tensors:
            if _version(tensor) != version or _unnoticed(tensor, value):
                _write(tensor, value)
        for tensor, before, version, value in self._gradients:
            if tensor.grad is not before:
                tensor.grad = before
            if before is not None and value is not None and _version(before) != version:
                _write(before, value)
        for reset in self._generators:
            reset()

    def written(self, module: nn.Module, but: str = "\0") -> str | None:
        """The first attribute of one of the model's modules that has been replaced, or whose contents have changed.

        Args:
            module: the model or a part of it; its own parts are not examined.
            but: names with this prefix do not count.

        """
        for where, before in self._of.get(id(module), ()):
            if not _alike(where.value, before):
                if where.attribute not in _REGISTRIES:
                    return where.attribute
                if names := [name for name in _different(where.value, before) if not name.startswith(but)]:
                    return names[0]
        for where, version, _ in self._tensors:
            if where.owner is module and _version(where.value) != version:
                return where.attribute
        return None


def copied(model: Model) -> Model:
    """A deep copy. Tensors with a graph behind them, which a forward pass left in attributes, become plain values."""
    memo = {
        id(value): value.detach().clone()
        for value, _, _ in reachable(model)
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo)


def take_attributes(module: nn.Module, source: nn.Module) -> None:
    """Take over what a network's own code has written to attributes, such as counters and flags.

    Only between parts of the same name and class, which is not torch's (these only have sizes), and only plain values:
    numbers, text, tensors that are not registered, and containers of these.

    Args:
        module: changed.
        source: of the same architecture, or what stands for it.

    """
    parts = dict(source.named_modules())
    own = {id(tensor) for part in parts.values() for tensor in registered(part)}
    for name, part in module.named_modules():
        if type(part) is not type(other := parts.get(name)) or not is_own(part):
            continue
        for attribute, value in vars(other).items():
            if attribute not in EVERY_MODULES and _is_plain(value, own):
                part.__dict__[attribute] = _plain_copy(value)


def _is_plain(value: Any, own: Container[int]) -> bool:
    if isinstance(value, Tensor):
        return id(value) not in own and not isinstance(value, nn.Parameter)
    if isinstance(value, (*CONTAINERS, tuple)):
        return all(_is_plain(part, own) for part in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, ATOMS)


def _plain_copy(value: Any) -> Any:
    tensors: dict[int, Any] = {}

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            tensors[id(value)] = value.detach().clone()
        elif isinstance(value, (*CONTAINERS, tuple)):
            for part in value.values() if isinstance(value, dict) else value:
                look(part)

    look(value)
    return copy.deepcopy(value, tensors)


def _contents(value: Any) -> Any:
    """A copy of what a container, an array or an object's slots hold, in a plain container."""
    # The own class's may take other arguments.
    if is_array(value):
        return copy.copy(value)
    kind = next((kind for kind in CONTAINERS if isinstance(value, kind)), None)
    return slots(value) if kind is None else kind(value)


def _put_back(value: Any, before: Any) -> None:
    if is_array(value):
        value[... if hasattr(value, "shape") else slice(None)] = before
    elif isinstance(value, list | deque):
        value.clear()
        value.extend(before)
    elif isinstance(value, dict | set):
        value.clear()
        value.update(before)
    else:
        for name, place in places(value).items():
            if name in before:
                place.__set__(value, before[name])
            elif hasattr(value, name):
                place.__delete__(value)


def _alike(one: Any, two: Any) -> bool:
    """Whether a value holds the very same objects, in the same order if it has one, as its earlier `_contents`."""
    if is_array(one):
        return bytes(one) == bytes(two) if isinstance(one, bytearray) else one.tobytes() == two.tobytes()
    one = one if isinstance(one, CONTAINERS) else slots(one)
    if len(one) != len(two):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), two.items(), strict=True)
        return all(value is other and _same_key(key, its) for (key, value), (its, other) in pairs)
    if isinstance(one, set):
        return {id(part) for part in one} == {id(part) for part in two}
    return all(a is b for a, b in zip(one, two, strict=True))


def _same_key(one: Any, two: Any) -> bool:
    """Whether two keys are the same or equal; tensors, which compare entry by entry, only if they are the same."""
    try:
        return one is two or (one == two) is True
    except Exception:
        return False


def _different(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Keys that were added, removed or have another value."""
    return [name for name in {**before, **now} if now.get(name, now) is not before.get(name, before)]


def _gradient(tensor: Tensor) -> _Gradient:
    before = tensor.grad
    if before is None:
        return _Gradient(tensor, None, (), None)
    return _Gradient(tensor, before, _version(before), before.detach().clone())


def _write(tensor: Tensor, value: Tensor) -> None:
    """Put values back, and shape and type if they have changed."""
    if (tensor.shape, tensor.dtype, tensor.device) != (value.shape, value.dtype, value.device):
        tensor.data = value
    else:
        with torch.no_grad():
            tensor.detach().copy_(value)


def _version(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is written to, or gets new memory."""
    inside = 0 if tensor.is_inference() else tensor._version
    return inside, tensor.data_ptr() if _plain(tensor) else 0, tensor.dtype, tuple(tensor.shape)


def _unnoticed(tensor: Tensor, value: Tensor) -> bool:
    """Whether a tensor was written to without a new version, as batch norm does to its statistics."""
    return _plain(tensor) and not torch.equal(tensor, value)


def _plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and type(tensor) in (Tensor, nn.Parameter)

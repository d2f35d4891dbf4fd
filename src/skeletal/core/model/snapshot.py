"""Everything attached to a model besides the values of its parameters and buffers: noted, restored, copied."""

import copy
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, NoneType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from skeletal.core.model.random_state import is_generator, state_setter

Model = TypeVar("Model", bound=nn.Module)

_CONTAINERS = (dict, list, set, deque)
_ATOMS = (str, bool, int, float, NoneType, bytes, complex)
_EVERY_MODULES = frozenset(vars(nn.Module()))
_REGISTRIES = ("", "_parameters", "_buffers", "_modules")
_FOREIGN = 3
"""how many objects of foreign classes deep an attribute is followed: caches and tables, not whole trainers"""
_GLOBALS = (*_CONTAINERS, Tensor, nn.Module, FunctionType)
_NOT_FOLLOWED = ("builtins", "torch", "logging", "skeletal")


class _Found(NamedTuple):
    """A container or tensor, and where it is attached."""

    value: Any
    owner: Any
    """a module, or what was given beside the model"""
    attribute: str
    """of the owner, through which it was reached; "" for the owner's own `__dict__`"""


class _Held(NamedTuple):
    where: _Found
    before: Any


class _Gradient(NamedTuple):
    """What a tensor's `.grad` was, and its values then."""

    of: Tensor
    before: Tensor | None
    version: tuple[Any, ...]
    value: Tensor | None


class Snapshot:
    """The attributes of a model and of all its modules as they are now, and the contents of what they hold.

    Lists, dicts, sets, plain objects, and whatever functions can reach are followed; this includes hooks, registries,
    caches and modules outside the registries. Values are also kept, except those of parameters and buffers: these
    are up to the code that gives the model stand-ins for them (see `preserve.state_of`). Gradients of all tensors are
    kept, and the states of random generators.

    Args:
        model: whose attributes they are.
        beside: another module or function, such as a loss, with all that it can reach, its own parameters' values
            included, but not the containers that a function holds, in which it may keep a record.

    """

    def __init__(self, model: nn.Module, beside: object = None) -> None:
        own = {id(tensor) for module in model.modules() for tensor in registered(module)}
        self._containers: list[_Held] = []
        self._tensors: list[tuple[_Found, tuple[Any, ...], Tensor]] = []
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
                where.value.clear()
                where.value.extend(before) if isinstance(before, list | deque) else where.value.update(before)
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
        kind = type(part)
        if kind is not type(other := parts.get(name)) or kind.__module__.partition(".")[0] in _NOT_FOLLOWED:
            continue
        for attribute, value in vars(other).items():
            if attribute not in _EVERY_MODULES and _is_plain(value, own):
                part.__dict__[attribute] = _plain_copy(value)


def _is_plain(value: Any, own: Container[int]) -> bool:
    if isinstance(value, Tensor):
        return id(value) not in own and not isinstance(value, nn.Parameter)
    if isinstance(value, (*_CONTAINERS, tuple)):
        return all(_is_plain(part, own) for part in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, _ATOMS)


def _plain_copy(value: Any) -> Any:
    tensors: dict[int, Any] = {}

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            tensors[id(value)] = value.detach().clone()
        elif isinstance(value, (*_CONTAINERS, tuple)):
            for part in value.values() if isinstance(value, dict) else value:
                look(part)

    look(value)
    return copy.deepcopy(value, tensors)


def registered(module: nn.Module) -> Iterator[Tensor]:
    """A module's own parameters and buffers, without those of its parts."""
    for registry in (module._parameters, module._buffers):
        yield from (tensor for tensor in registry.values() if tensor is not None)


def reachable(model: nn.Module, beside: object = None) -> Iterator[_Found]:
    """Every container, dict of a module or object, tensor and random generator that can be reached, once."""
    seen: set[int] = set()
    pending: list[tuple[_Found, int]] = [(_Found(root, root, ""), 0) for root in (model, beside)]
    while pending:
        found, depth = pending.pop()
        value = found.value
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            pending.append((_Found(value.__dict__, value, ""), 0))
            continue
        if isinstance(value, (Tensor, *_CONTAINERS)) or is_generator(value):
            yield found
        if isinstance(value, dict):
            if found.attribute == "":
                named = [(str(key), part) for key, part in value.items() if _may_hold(part)]
                pending += [(_Found(part, found.owner, name), depth) for name, part in named]
                continue
            inside: Iterable[Any] = value.values()
        elif isinstance(value, (*_CONTAINERS, tuple)):
            inside = value
        elif depth < _FOREIGN:
            inside, depth = _behind(value, depth)
        else:
            continue
        pending += [(_Found(part, found.owner, found.attribute), depth) for part in inside if _may_hold(part)]


def _may_hold(value: Any) -> bool:
    return type(value) not in _ATOMS and not isinstance(value, (*_ATOMS, type))


def _behind(value: Any, depth: int) -> tuple[list[Any], int]:
    """What an object, function or method (such as a hook) can write to, and how deep that counts.

    Behind a function or method, an object's own attributes are followed, but no further objects: a trainer's method
    that serves as a hook leads to its list of outputs, but not on to the stream of batches. Of the globals that a
    function names, containers, tensors, modules and functions are followed: other objects are not its own.
    """
    last = max(depth, _FOREIGN - 1)
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()], last
    if isinstance(value, MethodType):
        return [value.__self__], last
    maker = value if isinstance(value, FunctionType) else type(value)
    if (maker.__module__ or "builtins").partition(".")[0] in _NOT_FOLLOWED:
        return [], depth
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        named = [value.__globals__.get(name) for name in _names(value.__code__)]
        return [*cells, *defaults, *(part for part in named if isinstance(part, _GLOBALS))], max(depth + 1, last)
    return [vars(value)] if hasattr(value, "__dict__") else [], depth + 1


def _names(code: CodeType) -> Iterator[str]:
    """The globals and attributes that a function names, also in functions and comprehensions inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _contents(container: Any) -> Any:
    """A plain container with the same contents; the own class's may take other arguments."""
    return next(kind(container) for kind in _CONTAINERS if isinstance(container, kind))


def _alike(one: Any, two: Any) -> bool:
    """Whether two containers hold the very same objects in the same order, as far as they have one."""
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

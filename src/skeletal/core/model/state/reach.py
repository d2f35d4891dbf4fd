"""What is attached to a model besides its parameters and buffers, and whatever its code can write to from there."""

import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, NoneType
from typing import Any, NamedTuple

from torch import Tensor, nn

from skeletal.core.model.state.random_state import is_generator

CONTAINERS = (dict, list, set, deque)
ATOMS = (str, bool, int, float, NoneType, bytes, complex)
NOT_FOLLOWED = ("builtins", "torch", "logging", "skeletal")
"""packages whose objects and functions keep nothing of a model's"""
_HAVE_NONE = sys.stdlib_module_names | set(NOT_FOLLOWED)
_FOREIGN = 3
"""how many objects of foreign classes deep an attribute is followed: caches and tables, not whole trainers"""
_GLOBALS = (*CONTAINERS, Tensor, nn.Module, FunctionType)


class Found(NamedTuple):
    """A container, array, tensor, random generator or object with slots, and where it is attached."""

    value: Any
    owner: Any
    """a module, or what was given beside the model"""
    attribute: str
    """of the owner, through which it was reached; "" for the owner's own `__dict__`"""


EVERY_MODULES = frozenset(vars(nn.Module()))
"""attributes that any module has"""


def is_own(part: nn.Module) -> bool:
    """Whether a module is not of torch's or our classes, and may do what it likes."""
    return type(part).__module__.partition(".")[0] not in NOT_FOLLOWED


def has_own_code(model: nn.Module) -> bool:
    """Whether a model has such a part."""
    return any(is_own(part) for part in model.modules())


def registered(module: nn.Module) -> Iterator[Tensor]:
    """A module's own parameters and buffers, without those of its parts."""
    for registry in (module._parameters, module._buffers):
        yield from (tensor for tensor in registry.values() if tensor is not None)


def reachable(model: nn.Module, beside: object = None) -> Iterator[Found]:
    """Everything that can be reached and written to, once: see `Found`."""
    seen: set[int] = set()
    pending: list[tuple[Found, int]] = [(Found(root, root, ""), 0) for root in (model, beside)]
    while pending:
        found, depth = pending.pop()
        value = found.value
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            pending.append((Found(value.__dict__, value, ""), 0))
            continue
        if isinstance(value, (Tensor, *CONTAINERS)) or is_array(value) or is_generator(value) or places(value):
            yield found
        if isinstance(value, dict):
            if found.attribute == "":
                named = [(str(key), part) for key, part in value.items() if _may_hold(part)]
                pending += [(Found(part, found.owner, name), depth) for name, part in named]
                continue
            inside: Iterable[Any] = value.values()
        elif isinstance(value, (*CONTAINERS, tuple)):
            inside = value
        elif depth < _FOREIGN:
            inside, depth = _behind(value, depth)
        else:
            continue
        pending += [(Found(part, found.owner, found.attribute), depth) for part in inside if _may_hold(part)]


def _may_hold(value: Any) -> bool:
    return type(value) not in ATOMS and not isinstance(value, (*ATOMS, type))


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
    if (maker.__module__ or "builtins").partition(".")[0] in NOT_FOLLOWED:
        return [], depth
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        named = [value.__globals__.get(name) for name in _names(value.__code__)]
        return [*cells, *defaults, *(part for part in named if isinstance(part, _GLOBALS))], max(depth + 1, last)
    attributes = [vars(value)] if hasattr(value, "__dict__") else []
    return [*attributes, *slots(value).values()], depth + 1


def is_array(value: Any) -> bool:
    """Whether a value is numbers or bytes that can be written in place: not a tensor, nor a file mapped to memory."""
    if isinstance(value, bytearray | array):
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and value.flags.writeable


def slots(value: Any) -> dict[str, Any]:
    """What an object holds in its `places`, by name; those without a value are left out."""
    return {name: getattr(value, name) for name in places(value) if hasattr(value, name)}


def places(value: Any) -> dict[str, MemberDescriptorType]:
    """The `__slots__` of an object of a user's own class, by name."""
    if type(value).__module__.partition(".")[0] in _HAVE_NONE:
        return {}
    return {
        name: place
        for kind in reversed(type(value).__mro__)
        if "__slots__" in vars(kind)
        for name, place in vars(kind).items()
        if isinstance(place, MemberDescriptorType)
    }


def _names(code: CodeType) -> Iterator[str]:
    """The globals and attributes that a function names, also in functions and comprehensions inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)

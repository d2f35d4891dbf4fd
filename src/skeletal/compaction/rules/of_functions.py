"""The rule of a function or a tensor's method: a table from what is called to what finds the rule."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from skeletal.compaction.rules.operations import (
    ACTIVATIONS,
    ADDS,
    CONCATENATES,
    DIVIDES,
    MULTIPLIES,
    NAMELESS,
    PASSES,
    POOLS,
    REDUCES,
    RESIZES,
)
from skeletal.compaction.rules.pointwise import at_zero
from skeletal.compaction.rules.rule import Gather, Join, Map, Rule

Axes = Mapping[fx.Node, int]
"""where tensors that follow rules have their channels"""


def of_function(node: fx.Node, axes: Axes) -> Rule | None:
    """The rule of a node that calls a function or a method; None if none is known."""
    target: Any = node.target
    handler = FUNCTIONS.get(target)
    return None if handler is None else handler(node, axes)


def _only(node: fx.Node, axes: Axes) -> tuple[fx.Node, int] | None:
    """The one tensor among the positional arguments, and where it has its channels."""
    tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
    return (tensors[0], axes[tensors[0]]) if len(tensors) == 1 and tensors[0] in axes else None


def _of_one(node: fx.Node, axes: Axes) -> tuple[fx.Node, int] | None:
    """The same, if the node reads nothing else that the graph computes."""
    return _only(node, axes) if len(node.all_input_nodes) == 1 else None


def _added(node: fx.Node, axes: Axes) -> Rule | None:
    return _joined(node, axes, multiplies=False) if _of_two(node) else _pointwise(node, axes)


def _multiplied(node: fx.Node, axes: Axes) -> Rule | None:
    if scaled := _scaled(node, axes):
        return scaled
    return _joined(node, axes, multiplies=True) if _of_two(node) else _pointwise(node, axes)


def _divided(node: fx.Node, axes: Axes) -> Rule | None:
    return _scaled(node, axes) or _pointwise(node, axes)


def _of_two(node: fx.Node) -> bool:
    return (
        len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args) and node.kwargs.keys() <= {"alpha"}
    )


def _passed(node: fx.Node, axes: Axes) -> Map | None:
    found = _only(node, axes)
    return None if found is None else Map((found[0],), found[1])


def _resized(node: fx.Node, axes: Axes) -> Map | None:
    found = _only(node, axes)
    if found is None or any("shape" in other.meta for other in node.all_input_nodes if other is not found[0]):
        return None
    return Map((found[0],), 1) if found[1] == 1 else None


def _pointwise(node: fx.Node, axes: Axes) -> Map | None:
    if (found := _of_one(node, axes)) is None:
        return None
    source, axis = found
    before = source.meta["shape"]
    if before != node.meta["shape"]:
        return None
    return Map((source,), axis, *at_zero(lambda zero: _call(node, source, zero), len(before)))


def _pooled(node: fx.Node, axes: Axes) -> Map | None:
    if (found := _of_one(node, axes)) is None:
        return None
    target: Any = node.target
    dims = NAMELESS.get(target) or int(target.__name__[-2])
    return Map((found[0],), 1) if found[1] == 1 and len(found[0].meta["shape"]) == dims + 2 else None


def _padded(node: fx.Node, axes: Axes) -> Map | None:
    if (found := _of_one(node, axes)) is None:
        return None
    sizes: Any = node.args[1] if len(node.args) == 2 else None
    mode, value = node.kwargs.get("mode", "constant"), node.kwargs.get("value")
    dims = len(found[0].meta["shape"])
    plain = sizes is not None and (mode != "constant" or not value) and len(sizes) <= 2 * (dims - 2)
    return Map((found[0],), 1) if found[1] == 1 and plain else None


def _call(node: fx.Node, source: fx.Node, value: Tensor) -> Tensor:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda found: value if found is source else found)
    target: Any = node.target
    return getattr(value, target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)


def _scaled(node: fx.Node, axes: Axes) -> Map | None:
    """A tensor multiplied or divided by a number that the graph computes, or by a parameter with a single entry."""
    if len(node.args) != 2:
        return None
    for source, number in (node.args, node.args[::-1]):
        if not isinstance(source, fx.Node) or not isinstance(number, fx.Node):
            return None
        if source in axes and number.meta.get("shape", ()) == ():
            return Map((source,), axes[source])
        if node.target in DIVIDES:
            break
    return None


def _joined(node: fx.Node, axes: Axes, *, multiplies: bool) -> Join | None:
    one, two = node.args
    if not isinstance(one, fx.Node) or not isinstance(two, fx.Node) or not (one in axes or two in axes):
        return None
    shape, other = one.meta.get("shape", ()), two.meta.get("shape", ())
    axis = axes.get(one, axes.get(two))
    if axis is None or axes.get(two, axis) != axis or len(shape) != len(other) or shape[axis] != other[axis]:
        return None
    return Join((one, two), axis, multiplies)


def _concatenated(node: fx.Node, axes: Axes) -> Gather | None:
    parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(parts, list | tuple) or not all(isinstance(part, fx.Node) for part in parts):
        return None
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if not isinstance(dim, int) or not any(part in axes for part in parts):
        return None
    axis = dim % len(node.meta["shape"])
    if any(axes.get(part, axis) != axis for part in parts):
        return None
    return Gather(tuple(parts), axis, torch.arange(sum(part.meta["shape"][axis] for part in parts), device="cpu"))


def _reduced(node: fx.Node, axes: Axes) -> Map | None:
    if (found := _of_one(node, axes)) is None:
        return None
    source, axis = found
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [dim] if isinstance(dim, int) else dim
    if not isinstance(dims, list | tuple) or not dims or not all(isinstance(d, int) for d in dims):
        return None
    size = len(source.meta["shape"])
    gone = {d % size for d in dims}
    if axis in gone or 0 in gone:
        return None
    kept = len(node.meta["shape"]) == size
    return Map((source,), axis if kept else axis - sum(d < axis for d in gone))


FUNCTIONS: dict[Any, Callable[[fx.Node, Axes], Rule | None]] = {
    **dict.fromkeys(CONCATENATES, _concatenated),
    **dict.fromkeys(ADDS, _added),
    **dict.fromkeys(MULTIPLIES, _multiplied),
    **dict.fromkeys(DIVIDES, _divided),
    **dict.fromkeys(ACTIVATIONS, _pointwise),
    **dict.fromkeys(PASSES, _passed),
    **dict.fromkeys(RESIZES, _resized),
    **dict.fromkeys(POOLS, _pooled),
    F.pad: _padded,
    **dict.fromkeys(REDUCES, _reduced),
}

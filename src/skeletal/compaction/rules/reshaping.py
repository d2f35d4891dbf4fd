"""Operations that rearrange channels or read their number: flatten, view, chunk, split, size."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from skeletal.compaction.rules.rule import Gather, Map, Rule

Kept = Callable[[fx.Node], Tensor]  # bool, for each channel a node had
Rewrite = Callable[[Kept], None]  # adapts a node's arguments once channels are gone

_FLATTENS = {torch.flatten, "flatten"}
_VIEWS = {torch.reshape, "view", "reshape"}
_CHUNKS = {torch.chunk, "chunk", torch.split, "split"}
_FACTS = {"dtype", "device", "ndim"}  # of a tensor, which do not depend on its number of channels
_SQUEEZES = {torch.squeeze, torch.unsqueeze, "squeeze", "unsqueeze"}


def rule_of(node: fx.Node, axes: Mapping[fx.Node, int], rewrites: list[Rewrite]) -> Rule | None:
    """The rule of a function or method that rearranges a tensor, if it is known; it may append to `rewrites`."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    target: Any = node.target
    if node.target in _FLATTENS:
        return flattened(node, axes)
    if node.target in _VIEWS:
        return _viewed(node, axes, rewrites)
    if node.target in _SQUEEZES:
        return _squeezed(node, axes)
    if getattr(target, "__name__", "") == "getitem":
        return _piece(node, axes, rewrites)
    return None


def flattened(node: fx.Node, axes: Mapping[fx.Node, int]) -> Rule | None:
    """(N, C, ...) -> (N, C * positions), each channel's positions side by side; or only those: (N, C, positions)."""
    source = node.all_input_nodes[0]
    if axes.get(source) != 1:
        return None
    before, after = source.meta["shape"], node.meta["shape"]
    if after[:2] == before[:2] and len(after) > 2:
        return Map((source,), 1)
    positions = math.prod(before[2:])
    if len(after) == 2 and after == (before[0], before[1] * positions):
        return Gather((source,), 1, torch.arange(before[1], device="cpu").repeat_interleave(positions))
    return None


def _sizes_given(view: fx.Node) -> Any:
    sizes: Any = view.args[1:]
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes


def _viewed(node: fx.Node, axes: Mapping[fx.Node, int], rewrites: list[Rewrite]) -> Rule | None:
    source: Any = node.args[0]
    sizes = _sizes_given(node)
    if node.kwargs or len(sizes) < 2 or not _is_batch(sizes[0]) or axes.get(source) != 1:
        return None
    rule = flattened(node, axes)
    if rule is not None and sizes[1] != -1:

        def rewrite(kept: Kept) -> None:
            now = (sizes[0], int(kept(node).sum()), *sizes[2:])
            node.args = (source, *now) if node.op == "call_method" else (source, now)

        rewrites.append(rewrite)
    return rule


def _is_batch(size: Any) -> bool:
    """Whether a size is that of dimension 0, for any batch."""
    if not isinstance(size, fx.Node):
        return isinstance(size, int)
    return (read := _sizes_read(size)) is not None and read[1] == [0]


def _is_shape(node: fx.Node) -> bool:
    return (node.target == "size" and len(node.args) == 1) or (node.target is getattr and node.args[1] == "shape")


def _sizes_read(node: fx.Node) -> tuple[fx.Node, list[int]] | None:
    """The tensor, and its dimensions, whose size or sizes a node holds."""
    if len(node.args) != 2 or not isinstance(node.args[0], fx.Node):
        return None
    source: Any = node.args[0]
    index: Any = node.args[1]
    if node.target != "size":
        if getattr(node.target, "__name__", "") != "getitem" or not _is_shape(source):
            return None
        source = source.args[0]
    numbers = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
    if not all(isinstance(number, int | None) for number in numbers) or "shape" not in source.meta:
        return None
    dims = list(range(len(source.meta["shape"])))[index]
    return source, dims if isinstance(dims, list) else [dims]


def is_harmless(node: fx.Node, axes: Mapping[fx.Node, int]) -> bool:
    """Whether a node whose result is not a tensor does not depend on the number of channels of what it reads.

    It may read sizes other than that number, or pass it only to views, which are told the new one (but see
    `strange_views`); or it cuts a tensor into pieces, whose rules belong to the nodes that take them.
    """
    source: Any = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return False
    if source not in axes:  # sizes of whole tensors, numbers made of sizes
        return not any(origin in axes for origin in node.all_input_nodes)
    if _is_shape(node):
        return all(_reads_no_channels(user, axes) for user in node.users)
    if node.target in _CHUNKS:
        return _cuts(node, axes) and all(getattr(user.target, "__name__", "") == "getitem" for user in node.users)
    return node.target == "dim" or (node.target is getattr and node.args[1] in _FACTS) or _reads_no_channels(node, axes)


def _reads_no_channels(node: fx.Node, axes: Mapping[fx.Node, int]) -> bool:
    if (read := _sizes_read(node)) is None:
        return False
    source, dims = read
    return axes[source] not in dims or (len(dims) == 1 and all(_is_size_of_view(node, user) for user in node.users))


def _is_size_of_view(size: fx.Node, user: fx.Node) -> bool:
    """Whether a view uses a number as its number of channels only, which will be rewritten."""
    return user.target in _VIEWS and [i for i, found in enumerate(_sizes_given(user)) if found is size] == [1]


def strange_views(node: fx.Node, rules: Mapping[fx.Node, Rule], axes: Mapping[fx.Node, int]) -> list[fx.Node]:
    """The views that get a number of channels from a harmless node and, having no rule, keep it."""
    sizes = list(node.users) if _is_shape(node) else [node]
    return [
        view
        for size in sizes
        if (read := _sizes_read(size)) is not None and axes.get(read[0]) in read[1]
        for view in size.users
        if view not in rules
    ]


def _cuts(node: fx.Node, axes: Mapping[fx.Node, int]) -> bool:
    source: Any = node.args[0]
    dim: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    return len(node.all_input_nodes) == 1 and isinstance(dim, int) and dim % len(source.meta["shape"]) == axes[source]


def _piece(node: fx.Node, axes: Mapping[fx.Node, int], rewrites: list[Rewrite]) -> Gather | None:
    """A piece of a chunk or split along the channels."""
    cut, position = node.args
    if not isinstance(cut, fx.Node) or cut.target not in _CHUNKS or not isinstance(position, int):
        return None
    source: Any = cut.args[0]
    if source not in axes or not is_harmless(cut, axes):
        return None
    axis, bounds = axes[source], _bounds(cut)

    def rewrite(kept: Kept) -> None:
        now = [int(piece.sum()) for piece in kept(source).split(bounds)]
        cut.op, cut.target, cut.args, cut.kwargs = "call_function", torch.split, (source, now, axis), {}

    rewrites.append(rewrite)
    indices = torch.arange(sum(bounds), device="cpu").split(bounds)
    return Gather((source,), axis, indices[position])


def _bounds(cut: fx.Node) -> list[int]:
    """The sizes of the pieces."""
    source: Any = cut.args[0]
    args, kwargs = fx.map_arg((cut.args, cut.kwargs), lambda _: torch.empty(source.meta["shape"], device="meta"))
    target: Any = cut.target
    pieces: Iterable[Tensor] = (
        getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
    )
    dim: Any = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    return [piece.shape[dim] for piece in pieces]


def _squeezed(node: fx.Node, axes: Mapping[fx.Node, int]) -> Map | None:
    source: Any = node.args[0]
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if axes.get(source) != 1 or not isinstance(dim, int):
        return None
    longer = max(len(source.meta["shape"]), len(node.meta["shape"]))
    return Map((source,), 1) if dim % longer > 1 else None

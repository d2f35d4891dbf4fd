"""Keep little of a forward pass, and recompute parts of it in the backward pass: the same numbers in less memory."""

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skeletal.core.model.batches import map_tensors
from skeletal.core.model.preserve import Draws

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LONG = 6
"""number of modules from which a sequence is worth cutting up"""


@contextmanager
def recomputing(model: nn.Module, generators: Sequence[Any] = ()) -> Generator[None]:
    """Let a model's parts keep only their inputs for the backward pass (`torch.utils.checkpoint`).

    Parts are the outermost blocks of a kind that occurs more than once, such as a residual network's or a
    transformer's, and pieces of long `nn.Sequential`s, √n for n modules. They draw the same random numbers again from
    the global generators and from those given (see `preserve.generators_of`).

    Raises:
        RuntimeError: in the block, a part writes to its own input, which is then no longer there to recompute from.

    """
    draws = partial(Draws, generators)
    parts = list({id(part[0]): part for part in _parts(model, draws)}.values())  # a block may have several parents
    own = [module.__dict__.get("forward") for module, _ in parts]
    try:
        for module, forward in parts:
            module.forward = forward  # type: ignore[bad-assignment]
        yield
    finally:
        for (module, _), forward in zip(parts, own, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def refuse_reentrant(value: Tensor) -> None:
    """Refuse derivatives that reentrant activation checkpointing of the model's own would leave out as 0.

    Raises:
        ValueError: `value` has a reentrant checkpoint behind it, which only `value.backward()` passes.

    """
    pending, seen = [value.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "the model uses reentrant activation checkpointing, which only gives the gradient of a loss: pass"
                " use_reentrant=False to it, or choose a method that needs no more than that"
            )
        pending += [inner for inner, _ in node.next_functions]


def _parts(model: nn.Module, draws: Callable[[], Draws]) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Modules, and what their forward pass becomes."""
    kinds = Counter(type(module) for module in model.modules() if _is_block(module))
    if kinds[type(model)] > 1:  # a block that holds blocks of its own kind
        kinds[type(model)] = 0

    def visit(module: nn.Module) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        if kinds[type(module)] > 1 and _is_block(module):
            yield module, partial(_again, draws, type(module).__name__, [module], module.forward)
        elif type(module) is nn.Sequential and len(module) >= _LONG and not _has(module, kinds):
            yield module, partial(_piecewise, draws, _pieces(module))
        else:
            for child in module.children():
                yield from visit(child)

    yield from visit(model)


def _is_block(module: nn.Module) -> bool:
    holders = sum(bool(inner._parameters) for inner in module.modules())
    return not isinstance(module, _CONTAINERS) and holders > 1


def _has(module: nn.Module, kinds: Counter[type]) -> bool:
    return any(kinds[type(inner)] > 1 for inner in module.modules())


def _pieces(sequence: nn.Sequential) -> list[list[nn.Module]]:
    """√n pieces, none of which starts with a module that writes to its input."""
    modules = list(sequence)
    edges = {0, len(modules)}
    for start in range(0, len(modules), math.ceil(math.sqrt(len(modules)))):
        while start < len(modules) and getattr(modules[start], "inplace", False):
            start += 1
        edges.add(start)
    return [modules[begin:end] for begin, end in pairwise(sorted(edges))]


def _piecewise(draws: Callable[[], Draws], pieces: list[list[nn.Module]], x: Any) -> Any:
    def run(piece: list[nn.Module], x: Any) -> Any:
        for module in piece:
            x = module(x)
        return x

    for number, piece in enumerate(pieces, 1):
        x = _again(draws, f"piece {number} of a Sequential", piece, partial(run, piece), x)
    return x


def _again(
    draws: Callable[[], Draws],
    name: str,
    modules: list[nn.Module],
    forward: Callable[..., Any],
    *arguments: Any,
    **options: Any,
) -> Any:
    before = _versions(arguments, options)
    registries = {id(owner): owner._buffers for module in modules for owner in module.modules()}.values()
    found = [
        (buffers, name, b.detach().clone()) for buffers in registries for name, b in buffers.items() if b is not None
    ]
    first: Draws | None = None

    def run(*arguments: Any, **options: Any) -> Any:
        nonlocal first
        if first is None:
            first = draws()
            return forward(*arguments, **options)
        # It starts from the buffers and random states that the first run found, and leaves those that are there now.
        left, now = [(buffers, name, buffers[name]) for buffers, name, _ in found], draws()
        try:
            first.restore()
            for buffers, name, value in found:
                buffers[name] = value.clone()
            return forward(*arguments, **options)
        finally:
            now.restore()
            for buffers, name, value in left:
                buffers[name] = value

    result = checkpoint(run, *arguments, use_reentrant=False, **options)
    if _versions(arguments, options) != before:
        raise RuntimeError(
            f"{name} writes to its own input, from which it would have to start again: leave recompute out"
        )
    return result


def _versions(*values: Any) -> list[int]:
    found: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if not tensor.is_inference():
            found.append(tensor._version)
        return tensor

    map_tensors(note, values)
    return found

"""The caller's batches: one continuous stream, and how a batch meets a model and a loss."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

Loss = Callable[[Any, Any], Tensor]


class Cycle:
    """Cycles through any iterable of batches with one iterator, which is never restarted between steps.

    Raises:
        ValueError: the iterable is empty, or it was a generator that has run out.

    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._iterator: Iterator[Any] = iter(batches)
        self._ahead: list[Any] = []
        self.taken = 0

    def __next__(self) -> Any:
        if self._ahead:
            batch = self._ahead.pop()
        else:
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = iter(self._batches)
                try:
                    batch = next(self._iterator)
                except StopIteration:
                    raise ValueError(self._ran_out()) from None
        self.taken += 1
        return batch

    def _ran_out(self) -> str:
        if self.taken:
            return (
                f"batches ran out after {self.taken}, and an iterator cannot be restarted:"
                " pass a list or a DataLoader, or fewer steps or batches_per_step"
            )
        return "batches is empty: pass an iterable of (inputs, targets) or of dicts"

    def peek(self) -> Any:
        """The next batch, without consuming it."""
        batch = next(self)
        self._ahead.append(batch)
        self.taken -= 1
        return batch

    def twice(self, count: int) -> tuple[Iterator[Any], Iterator[Any]]:
        """The next `count` batches, two times over; the second time comes after the first.

        An endless iterable with a method `starting_at(k)`, which iterates from its k-th batch on, is asked for them
        again; batches of any other iterable are copied, as it may use the memory of one for the next.
        """
        again = getattr(self._batches, "starting_at", None)
        if again is not None:
            start = self.taken
            return (next(self) for _ in range(count)), (batch for batch in islice(again(start), count))
        held = self.hold(count)
        return iter(held), iter(held)

    def hold(self, count: int) -> list[Any]:
        """Copies of the next `count` batches: an iterable may use the memory of one for the next."""
        return [map_tensors(_copied, next(self)) for _ in range(count)]


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def forward(model: nn.Module, batch: Any) -> Any:
    """Run the model on a batch.

    Raises:
        TypeError: a batch that is neither a pair `(inputs, targets)` nor a dict.

    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise TypeError(f"a batch has to be (inputs, targets) or a dict of the model's arguments, not a {kind}")
    inputs = batch[0]
    if isinstance(inputs, Mapping):
        return model(**inputs)
    # Only plain tuples and lists are several arguments; a named tuple or a PackedSequence is one.
    return model(*inputs) if type(inputs) in (tuple, list) else model(inputs)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of logits (N, classes) and classes (N,).

    Raises:
        ValueError: a label is not one of the network's classes; on a GPU, CUDA reports this, and later.

    """
    try:
        return functional.cross_entropy(outputs, targets)
    except IndexError:
        last = outputs.shape[1] - 1
        ignored = -100  # the label that cross-entropy ignores
        wrong = targets[((targets < 0) | (targets > last)) & (targets != ignored)].unique().tolist()
        others = f", nor {', '.join(map(str, wrong[1:4]))}{', ...' if len(wrong) > 4 else ''}" if wrong[1:] else ""
        raise ValueError(
            f"label {wrong[0]} is not in 0..{last}{others}: the network has {last + 1} outputs; create it with"
            " as many as there are classes, or fix the labels"
        ) from None


def evaluate(loss: Loss | None, outputs: Any, batch: Any) -> Tensor:
    """The loss of a batch: `loss(outputs, targets)`, or `loss(outputs, batch)` for a dict.

    Without a loss: cross-entropy for a pair, the output's own `loss` for a dict (as Hugging Face models give).

    Raises:
        TypeError: the default does not apply, or the loss is not one number.

    """
    if loss is None and isinstance(batch, Mapping):
        value = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if value is None:
            raise TypeError(
                f"the model returned {type(outputs).__name__} without a loss: put labels in the batch,"
                " or pass loss=, a function of (outputs, batch)"
            )
    elif loss is None:
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"cross-entropy needs a tensor of logits, but the model returned {type(outputs).__name__}:"
                " pass loss=, a function of (outputs, targets)"
            )
        value = cross_entropy(outputs, batch[1])
    else:
        value = loss(outputs, batch if isinstance(batch, Mapping) else batch[1])
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss has to be one number, not {shape}: average it over the batch")
    return value.reshape(())


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to every tensor of nested tuples, lists, mappings and dataclasses; all else passes through."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, PackedSequence):
        return tree._replace(data=function(tree.data))
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        mapped = [map_tensors(function, value) for value in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    if is_dataclass(tree) and not isinstance(tree, type):
        mapped = copy.copy(tree)
        for name in [field.name for field in fields(tree) if hasattr(tree, field.name)]:
            object.__setattr__(mapped, name, map_tensors(function, getattr(tree, name)))  # it may be frozen
        return mapped
    return tree


def map_inputs(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Apply a function to the inputs of a batch, but not to targets or masks."""
    if isinstance(batch, Mapping):
        fixed = {key for key in batch if "mask" in str(key) or "label" in str(key)}
        return {key: value if key in fixed else map_tensors(function, value) for key, value in batch.items()}
    return map_tensors(function, batch[0]), batch[1]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _tensors(tuple(tree.values()))
    elif isinstance(tree, tuple | list) and not isinstance(tree, PackedSequence):
        for value in tree:
            yield from _tensors(value)


def _map_parts(function: Callable[[Any], Any], batch: Any) -> Any:
    """Apply a function to every argument and target of a batch, and to what mappings and named tuples of them hold."""

    def visit(part: Any, several: bool = False) -> Any:
        if isinstance(part, Mapping):
            return {key: visit(value) for key, value in part.items()}
        if hasattr(part, "_fields") and not isinstance(part, PackedSequence):
            return type(part)(*map(visit, part))
        return type(part)(map(visit, part)) if several else function(part)

    if isinstance(batch, tuple | list) and len(batch) == 2:
        return visit(batch[0], several=type(batch[0]) in (tuple, list)), visit(batch[1])
    return visit(batch)


def _lengths(part: Any) -> set[int]:
    return {len(tensor) for tensor in _tensors(part) if tensor.dim()}


def examples(batch: Any) -> int:
    """How many examples a batch holds: the length of most of its parts; if as many have another, the later's.

    A list or tuple of tensors may hold one entry for each example or, if its tensors are equally long, the examples of
    each along their first dimension.
    """
    counts: Counter[int] = Counter()

    def count(part: Any) -> None:
        lengths = _lengths(part)
        own = {len(part)} if lengths and isinstance(part, tuple | list) else set()
        counts.update(dict.fromkeys([*(lengths if len(lengths) == 1 else ()), *own], 1))

    _map_parts(count, batch)
    return max(reversed(counts), key=counts.__getitem__, default=1)


def pieces(batch: Any, size: int | None) -> Iterator[tuple[Any, float]]:
    """A batch in parts of about equal length, at most `size` examples each, with each part's share of the examples.

    Tensors are cut along their first dimension, and lists with an entry for each example; tensors of no dimension, and
    what holds no tensors and is not as long as the batch, go into every part whole.

    Raises:
        ValueError: a batch with a `PackedSequence` or a sparse tensor, which cannot be cut; tensors that are not as
            long as the batch; a list as long as the batch whose tensors are so, too.

    """
    count = examples(batch)
    if size is None or count <= size:
        yield batch, 1.0
        return
    parts = -(-count // size)
    for part in range(parts):
        first, end = part * count // parts, (part + 1) * count // parts
        yield _map_parts(partial(_cut, count, first, end), batch), (end - first) / count


def _cut(count: int, first: int, end: int, part: Any) -> Any:
    lengths = _lengths(part)
    one_each = isinstance(part, tuple | list) and len(part) == count and not isinstance(part, PackedSequence)
    if one_each and lengths != {count}:
        return part[first:end]
    if one_each or not lengths <= {count}:
        why = "a list as long as its tensors" if one_each else f"a part of length {min(lengths - {count})}"
        raise ValueError(
            f"a batch of {count} examples with {why} cannot be cut into micro-batches: have the examples along"
            " dimension 0 of every tensor, or leave micro_batch out"
        )
    return _slice(part, first, end)


def _slice(tree: Any, first: int, end: int) -> Any:
    if isinstance(tree, PackedSequence):
        raise ValueError("a batch with a PackedSequence cannot be cut into micro-batches: leave micro_batch out")
    if isinstance(tree, Tensor):
        if tree.layout != torch.strided:
            raise ValueError("a batch with a sparse tensor cannot be cut into micro-batches: leave micro_batch out")
        return tree[first:end] if tree.dim() else tree
    if isinstance(tree, Mapping):
        return {key: _slice(value, first, end) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        sliced = [_slice(value, first, end) for value in tree]
        return type(tree)(*sliced) if hasattr(tree, "_fields") else type(tree)(sliced)
    return tree


def to_device(batch: Any, device: torch.device, *, channels_last: bool = False) -> Any:
    """A copy of the batch on the model's device: an in-place first layer must not change the caller's.

    With `channels_last` images, tensors (N, C, H, W) of floating-point numbers, lie in memory as (N, H, W, C); norms,
    activations and pooling hand that order on, and convolutions bring their weights into it. Inputs that require a
    gradient, such as coordinates at which the model differentiates its output, still do.
    """

    def copied(tensor: Tensor) -> Tensor:
        return moved(tensor).requires_grad_(tensor.requires_grad)

    def moved(tensor: Tensor) -> Tensor:
        image = channels_last and tensor.dim() == 4 and tensor.is_floating_point()
        if tensor.layout != torch.strided:
            return tensor.detach().to(device).clone()
        order = torch.channels_last if image else torch.preserve_format
        if tensor.is_meta and device.type != "meta":  # a shape: zeros will do
            return torch.zeros_like(tensor, device=device, memory_format=order)
        return tensor.detach().to(device, non_blocking=True, copy=True, memory_format=order)

    return map_tensors(copied, batch)

"""Whether one network is a drop-in for another: same outputs, gradients, buffers and random draws, in both modes.

Both run on a few examples. The values compared went through the same operations in the same order, so their bits are
usually the same. Where they are not, both run again in double precision, if the model allows it, and any difference
above rounding is a difference in function; the tolerance is that of the type, or ten times the difference between two
runs of the original, whichever is larger.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.diagnosis.probing import shorten
from skeletal.core.model.batches import forward, map_inputs, map_tensors, to_device
from skeletal.core.model.preserve import device_of, differentiable, preserve_random_state
from skeletal.core.model.state.random_state import RandomState, seed_all
from skeletal.core.model.state.snapshot import copied
from skeletal.core.model.tensors import Tensors

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_TINY = 1e-30
_EXAMPLES = (2, None)  # None: the whole batch

Kept = Mapping[str, Tensor]
"""by parameter name, the positions, in the flat original, of the entries that the other network has as a vector"""


class CannotRunError(ValueError):
    """The original does not run on the example in one of the modes."""


@dataclass(frozen=True)
class _Run:
    """What one forward and backward pass has computed and left behind."""

    shape: Any
    """of the output tree: types and keys, everything but tensors"""
    tensors: dict[str, Tensor | None]
    """outputs, gradients, and the state after, each by a name that a message can use"""
    drawn: RandomState


class Reference:
    """An original network's passes on a few examples, to compare others with.

    Args:
        model: the masked original; copied.
        batch: as `skeletal.core.model.batches.forward` takes it.
        dtype: to compute in; None leaves it as it is.

    Raises:
        CannotRunError: there is no way to run it in both modes; the message names the mode.

    """

    def __init__(self, model: nn.Module, batch: Any, dtype: torch.dtype | None = None) -> None:
        self._model, self._whole_batch, self._dtype = model, batch, dtype
        error: CannotRunError | None = None
        for examples in _EXAMPLES:
            try:
                self._batch = _batch(batch, examples, dtype, device_of(model))
                self._expected = dict(self._passes(model))
            except CannotRunError as failed:
                error = error or failed
            else:
                return
        assert error is not None
        raise error

    def difference(self, candidate: nn.Module, kept: Kept | None = None) -> str | None:
        """The first thing that another network does differently, in words; None if it is a drop-in.

        Args:
            candidate: with the same parameters, or part of them; copied.
            kept: the kept positions of the parameters that it holds as vectors.

        """
        seen = set()
        try:
            for mode, found in self._passes(candidate):
                if (difference := self._difference_in(mode, found, candidate, kept)) is not None:
                    return difference
                seen.add(mode)
        except CannotRunError as error:
            return str(error)
        missing = [mode for mode in self._expected if mode not in seen]
        return f"{missing[0]}, it does not run" if missing else None

    def _difference_in(self, mode: str, found: _Run, candidate: nn.Module, kept: Kept | None) -> str | None:
        if (expected := self._expected.get(mode)) is None:
            return None
        if expected.shape != found.shape:
            return f"{mode}, it returns another structure"
        second: _Run | None = None
        for name, value in found.tensors.items():
            if name not in expected.tensors:
                return f"{mode}, it has {name}, which the original has not"
            positions = (kept or {}).get(name.removeprefix(_GRADIENT)) if name.startswith(_GRADIENT) else None
            want = _part(expected.tensors[name], positions)
            if _same_bits(want, value):
                continue
            if self._dtype != torch.float64 and (finer := self._finer()) is not None:
                return finer.difference(candidate, kept)
            second = second or dict(self._passes(self._model))[mode]
            if not _close(want, _part(second.tensors.get(name), positions), value):
                return f"{mode}, {name} differs"
        missing = expected.tensors.keys() - found.tensors.keys()
        if changed := [name for name in missing if _matters(name, expected.tensors[name])]:
            return f"{mode}, {min(changed)} is missing"
        return f"{mode}, it draws other random numbers" if expected.drawn != found.drawn else None

    def _finer(self) -> "Reference | None":
        """The same in double precision; None if the model does not run that way."""
        try:
            return Reference(self._model, self._whole_batch, torch.float64)
        except CannotRunError:
            return None

    def _passes(self, model: nn.Module) -> Iterator[tuple[str, _Run]]:
        """Twice in train mode, as state changes, once in eval mode and, if possible, in eval mode without gradients.

        One by one: gradients of a large network, in every mode, would take more memory than the network.
        """
        before = {name: value.detach() for name, value in model.named_parameters()}
        model = copied(model)
        if self._dtype is not None:
            before = {name: value.to(self._dtype) for name, value in before.items()}
            model.to(self._dtype)
        for parameter in model.parameters():
            parameter.grad = None
        with preserve_random_state(model):
            for seed, (mode, training, gradients, backward) in enumerate(_MODES):
                try:
                    model.train(training)
                    run = _run(model, self._batch, seed, gradients, backward, before)
                except Exception as error:  # whatever the model's own code raises
                    if not gradients:  # by code that takes derivatives itself
                        continue
                    first = str(error).strip().partition("\n")[0]
                    raise CannotRunError(f"{mode}, it does not run: {type(error).__name__}: {first}") from error
                yield mode, run


_GRADIENT = "the gradient of "
_MODES = (  # train mode, gradients on, with a backward pass
    ("in train mode", True, True, True),
    ("in the second step", True, True, False),
    ("in eval mode", False, True, True),
    ("in eval mode without gradients", False, False, False),
)


def _run(model: nn.Module, batch: Any, seed: int, gradients: bool, backward: bool, before: Tensors) -> _Run:
    """One pass; `before` has the parameters as they were before the first one."""
    seed_all(seed, model)
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not backward or tensor.layout != torch.strided:
            return tensor.clone()
        leaves.append(tensor.clone().requires_grad_())
        return leaves[-1] * 1  # not a leaf: a first layer may write to it

    tensors: dict[str, Tensor | None] = {}
    with differentiable(), torch.set_grad_enabled(gradients):
        outputs = forward(model, map_inputs(leaf, batch))
        shape: list[Any] = []
        found = list(_flat(outputs, shape))
        tensors |= {f"output {i}": value.detach() for i, value in enumerate(found)}
        if backward:
            generator = torch.Generator().manual_seed(seed)
            projection = [_projection(value, generator) for value in found if value.requires_grad]
            if projection:
                torch.stack(projection).sum().backward()
            tensors |= {f"the gradient of input {i}": value.grad for i, value in enumerate(leaves)}
            for name, parameter in model.named_parameters():
                tensors[f"{_GRADIENT}{name}"], parameter.grad = parameter.grad, None
    if not backward:  # by then a forward pass that writes to a weight has done so
        tensors |= {
            f"the value of {name}": _fingerprint(value.detach())
            for name, value in model.named_parameters()
            if not _same_bits(value.detach(), before[name])
        }
    tensors |= {f"the buffer of {name}": value.detach().clone() for name, value in model.named_buffers()}
    return _Run(shape, tensors, RandomState())


def _fingerprint(value: Tensor) -> Tensor:
    """Two numbers that change with any value, but not if zeros are left out."""
    wide = value.double() if value.is_floating_point() else value
    return torch.stack([wide.sum(), wide.abs().sum()])


def _projection(value: Tensor, generator: torch.Generator) -> Tensor:
    value = torch.view_as_real(value) if value.is_complex() else value
    value = value.to_dense() if value.layout != torch.strided else value
    weights = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu")
    return (value.to(torch.promote_types(value.dtype, torch.float32)) * weights.to(value)).sum().double()


def _flat(tree: Any, shape: list[Any]) -> Iterator[Tensor]:
    """The tensors of an output; everything else that has to be equal is put into `shape`."""
    if isinstance(tree, Tensor):
        shape.append((type(tree).__name__, str(tree.dtype), tuple(tree.shape), tree.requires_grad))
        yield tree
    elif isinstance(tree, Mapping):
        shape.append((type(tree), list(tree)))
        for value in tree.values():
            yield from _flat(value, shape)
    elif isinstance(tree, tuple | list):
        shape.append((type(tree), len(tree)))
        for value in tree:
            yield from _flat(value, shape)
    elif is_dataclass(tree) and not isinstance(tree, type):
        shape.append(type(tree))
        for field in fields(tree):
            yield from _flat(getattr(tree, field.name), shape)
    else:
        shape.append(tree if isinstance(tree, int | float | str | bool | None) else type(tree))


def _batch(batch: Any, examples: int | None, dtype: torch.dtype | None, device: torch.device) -> Any:
    """A few examples, at least two because batch norm needs them."""
    generator = torch.Generator().manual_seed(0)

    def prepared(tensor: Tensor) -> Tensor:
        tensor = tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
        if examples is not None and tensor.layout == torch.strided and tensor.dim() and len(tensor) == 1:
            tensor = torch.cat([tensor, tensor])
        if tensor.layout != torch.strided:
            return tensor
        if tensor.is_floating_point() and tensor.numel() and (tensor == tensor.flatten()[0]).all():
            # Zeros, ones: a mere shape.
            tensor = tensor + torch.rand(tensor.shape, generator=generator, device="cpu").to(tensor)
        return tensor

    few = shorten(to_device(batch, device), examples)
    if isinstance(few, Mapping):
        return map_tensors(prepared, few)
    return map_tensors(prepared, few[0]), few[1]


def _part(value: Tensor | None, kept: Tensor | None) -> Tensor | None:
    return value if value is None or kept is None else _strided(value).flatten()[kept]


def _strided(value: Tensor) -> Tensor:
    return value if value.layout == torch.strided else value.to_dense()


def _same_bits(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    if one.layout != two.layout or one.shape != two.shape or one.dtype != two.dtype:
        return False
    return torch.equal(_strided(one), _strided(two))


def _close(want: Tensor | None, second: Tensor | None, value: Tensor | None) -> bool:
    """Whether a value is as wanted, apart from rounding and from what the original itself does not reproduce."""
    if want is None or value is None or second is None:
        return want is value
    if want.layout != value.layout or want.shape != value.shape or want.dtype != value.dtype:
        return False
    want, second, value = (_strided(tensor) for tensor in (want, second, value))
    if not (want.is_floating_point() or want.is_complex()):
        return torch.equal(want, value)
    unknown = want.isnan() & value.isnan() | (want == value)  # infinities, too
    off, noise = ((other - want).masked_fill(unknown, 0).abs().double() for other in (value, second))
    size = want.masked_fill(unknown & ~want.isfinite(), 0).abs().max().item() if want.numel() else 0.0
    real = torch.float64 if want.is_complex() else want.dtype
    return bool((off <= 10 * noise + _ROUNDING.get(real, 1e-4) * size + _TINY).all())


def _matters(name: str, value: Tensor | None) -> bool:
    """Whether something that only the original has can matter: a gradient can, a value that nothing uses cannot."""
    return value is not None and not name.startswith("the buffer")

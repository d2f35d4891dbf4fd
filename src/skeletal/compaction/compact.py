"""Remove dead channels: the same function, by a smaller and ordinary dense network."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from skeletal.compaction.channels import Channels, find_channels
from skeletal.compaction.report import CutLayer, Report
from skeletal.compaction.rules.rule import CONSTANT, ZERO, Norm, Product
from skeletal.compaction.shrink import cut_modules
from skeletal.compaction.slices import Slices, gather, scatter
from skeletal.compaction.tracing.trace import UntraceableError, become_like, note_shapes, state_tensors, trace
from skeletal.core.diagnosis.macs import count_macs
from skeletal.core.errors import MaskError
from skeletal.core.masks.attach import gradient_hooks
from skeletal.core.masks.match import by_first_names, matching_parameters
from skeletal.core.model.batches import map_tensors
from skeletal.core.model.preserve import differentiable, preserve_attributes, preserve_model
from skeletal.core.model.state.snapshot import copied
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.weights import unwrap

_WITHOUT_EXTRA_STATE = (nn.Module.get_extra_state, nn.Module.set_extra_state)


@dataclass(frozen=True, eq=False)
class Compact:
    """A network without its dead channels, and the way back."""

    model: nn.Module
    """a `torch.fx.GraphModule` of smaller layers under their old names, with `node.meta["shape"]` for the example;
    a plain copy of the original where `report.whole` says why it could not be analysed"""
    mask: Tensors
    """what is left of the mask, by parameter name, fitting `model`: attach it to train `model`"""
    slices: Slices
    """per parameter and buffer of the original, which indices are left along each dimension; -1: zeros that
    were inserted to pad a width; None: all"""
    report: Report
    original: nn.Module = field(repr=False)
    """a copy of the masked original: dead weights have their values here"""
    original_mask: Tensors = field(repr=False)
    relied_on: Tensors = field(repr=False)
    """per bias and running mean, the entries that have to stay 0 for channels to count as zero"""

    @differentiable()
    def to_dense(self) -> nn.Module:
        """A network of the original architecture with the current values, types and device.

        Pruned weights are exactly 0; a value that was removed although the mask keeps it has its original value.
        """
        dense = copied(self.original)
        put_back(dense, state_tensors(self.model), self.slices)
        _zero(dense, self.original_mask)
        become_like(dense, self.model, self.model.training)
        take_extra_states(dense, self.model)
        return dense

    def dense_state(self) -> dict[str, Any]:
        """The `state_dict` of `to_dense()`."""
        return self.to_dense().state_dict()

    def load_dense(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of the original architecture; pruned weights in it count as 0.

        Raises:
            MaskError: a bias that is known to stay 0 in training is not 0 in this state. The state comes from a
                network that was trained differently: load it into the original and compact that.
            RuntimeError: the state does not fit the original architecture.

        """
        dense = self.to_dense()
        dense.load_state_dict(state)
        _zero(dense, self.original_mask)
        values = state_tensors(dense)
        refuse_moved(values, self.relied_on, "compact")
        become_typed(self.original, values)
        fill(self.original, values)
        fill(self.model, gather(values, self.slices))
        for network in (self.original, self.model):
            take_extra_states(network, dense)


def compact(model: nn.Module, mask: Mapping[str, Tensor], example: Any, *, multiple_of: int = 1) -> Compact:
    """Remove the channels of a masked network that can never have an effect. The result is exact.

    A channel goes if nothing reads it, or if it is zero and stays zero under training. A channel without inputs that
    emits a constant (its bias, or its norm's), or whose zero bias a gradient reaches, stays, with empty weights.
    Output, remaining gradients and running statistics equal those of the masked model, up to rounding, before and
    after steps of any optimizer that leaves a parameter alone if its value and gradient are 0. Exceptions: dropout
    draws different random numbers because its tensors have different shapes; a channel that is left only because a
    layer or group needs one has no effect, but different statistics. Frozen parameters (`requires_grad` False) count
    as fixed.

    The network is traced with torch.fx. Unknown operations (attention, layer norm, ...) keep all channels around
    them; a network that cannot be traced is returned whole, with the reason in the report.

    Args:
        model: any module; not changed. Pruned weights count as 0, whether the mask is attached or not.
        mask: a `Mask`, or bool tensors by parameter name.
        example: a tensor of inputs, with its batch dimension, or a batch as `prune` takes them: `(inputs, targets)` or
            a dict of the model's arguments.
        multiple_of: pad the widths of convolutions and linear layers to multiples of this. Matrix units of GPUs want 8
            in half precision: a width of 499 is slower there than 512. Dead channels stay until the width
            is a multiple, or what it was before. They are zeros: all of their weights, biases and scales are exactly
            0, pruned by the mask that is left, out of every gradient's reach, and so stay 0 in training.

    Warns:
        UserWarning: parameters have gradient hooks of their own, which stay with the model.

    Raises:
        MaskError: the mask belongs to another model.
        ValueError: the model does not run on the example; `multiple_of` is not a whole number, or is less than 1.

    """
    if not isinstance(multiple_of, int) or isinstance(multiple_of, bool) or multiple_of < 1:
        raise ValueError(f"multiple_of has to be a whole number of at least 1, not {multiple_of!r}")
    model = unwrap(model)
    mask = {name: keep.bool().cpu() for name, keep in by_first_names(mask, model).items()}
    _warn_of_gradient_hooks(model)
    batch = (example, None) if isinstance(example, Tensor) else example
    with differentiable(), preserve_attributes(model):  # in inference mode, nobody could train what is made
        return _compacted(model, mask, differentiable_too(batch), multiple_of)


def differentiable_too(batch: Any) -> Any:
    """The same batch for code that needs gradients, even if it was made in inference mode."""
    return map_tensors(lambda value: value.clone() if value.is_inference() else value, batch)


def _compacted(model: nn.Module, mask: Tensors, batch: Any, multiple_of: int) -> Compact:
    original = copied(model)
    original.zero_grad(set_to_none=True)
    _zero(original, mask)
    work = copied(original)
    names = state_tensors(work)
    try:
        traced = trace(work, batch)
    except UntraceableError as error:
        slices: Slices = {name: (None,) * tensor.dim() for name, tensor in names.items()}
        return Compact(copied(original), mask, slices, Report((), (0, 0), (), str(error)), original, mask, {})
    present = state_tensors(traced)
    aliases = {id(tensor): name for name, tensor in present.items()}
    channels = find_channels(traced, {id(names[name]): keep for name, keep in mask.items()}, multiple_of)
    cut = cut_modules(traced, channels)
    slices = {name: cut.get(id(tensor), (None,) * tensor.dim()) for name, tensor in names.items()}
    note_shapes(traced, batch)
    left = {}
    for name, keep in gather(mask, slices).items():
        if (there := name if name in present else aliases.get(id(names[name]))) is not None:
            left[there] = keep
    with preserve_model(original, training=False, seed=0):
        before = count_macs(original, mask, batch).forward_dense
    with preserve_model(traced, training=False, seed=0):
        after = count_macs(traced, left, batch).forward_dense
    layers = tuple(
        _line(node, rule, channels, mask, left)
        for node, rule in channels.known.rules.items()
        if isinstance(rule, Product | Norm)
    )
    held = tuple(dict.fromkeys(reason for reason in channels.known.holds.values() if reason))
    relied_on = {name: entries for name, entries in channels.relied_on.items() if name in names and entries.any()}
    return Compact(traced, left, slices, Report(layers, (before, after), held), original, mask, relied_on)


def _warn_of_gradient_hooks(model: nn.Module) -> None:
    names = gradient_hooks(model)
    if names:
        warnings.warn(
            f"hooks on the gradients of {', '.join(names[:3])}{', ...' if names[3:] else ''} stay with the original"
            " model, whose parameters have other shapes: register them on the parameters of the new network",
            stacklevel=3,
        )


def _line(node: fx.Node, rule: Product | Norm, channels: Channels, mask: Tensors, left: Tensors) -> CutLayer:
    keep, state = channels.keep[node], channels.state[node]
    padding = channels.padding.get(node, torch.zeros_like(keep))
    own = keep & ~padding
    inputs = channels.keep.get(rule.inputs[0])
    size = rule.pairs.shape[1] if isinstance(rule, Product) else len(keep)
    name = f"{rule.target}.weight"
    kept, still = (int(tensors[name].sum()) if name in tensors else 0 for tensors in (mask, left))
    return CutLayer(
        rule.target,
        (size, size if inputs is None else int(inputs.sum())),
        (len(keep), int(keep.sum())),
        kept,
        kept - still,
        constant=int((own & (state == CONSTANT)).sum()),
        zero=int((own & (state == ZERO)).sum()),
        removed_zero=int((~own & (state == ZERO)).sum()),
        removed_unread=int((~own & (state != ZERO)).sum()),
        padding=int(padding.sum()),
    )


def refuse_moved(values: Tensors, relied_on: Tensors, verb: str) -> None:
    """Make sure that the zeros on which removals relied are still 0; `verb` says how to take them over if they are not.

    Raises:
        MaskError: names the first that is not.

    """
    for name, entries in relied_on.items():
        moved = values[name].detach().ne(0).cpu() & entries
        if moved.any():
            raise MaskError(
                f"{name}[{int(moved.nonzero()[0])}] is not 0 in this state, but was 0 when channels were removed:"
                f" load the state into the original model and {verb} that"
            )


@torch.no_grad()
def fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters and buffers of these names."""
    for name, tensor in state_tensors(model).items():
        if name in values:
            tensor.copy_(values[name])


def put_back(model: nn.Module, values: Tensors, slices: Slices) -> None:
    """Write a cut network's values into the original one, which also takes their types and their device."""
    become_typed(model, values)
    fill(model, scatter(values, slices, state_tensors(model)))


def become_typed(model: nn.Module, values: Tensors) -> None:
    """Give parameters and buffers the types and devices that values of the same names have.

    What has no value there goes where all others of its type have gone.
    """
    own = state_tensors(model)
    moved: dict[Any, set[Any]] = {}
    for name in own.keys() & values.keys():
        moved.setdefault(_kind(own[name]), set()).add(_kind(values[name]))
    for name, tensor in own.items():
        kinds = {_kind(values[name])} if name in values else moved.get(_kind(tensor), set())
        if len(kinds) == 1:
            tensor.data = tensor.data.to(*kinds.pop())


def _kind(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    return tensor.device, tensor.dtype


def take_extra_states(module: nn.Module, source: nn.Module) -> None:
    """Hand on what parts save besides tensors (`get_extra_state`), between parts of the same name and class."""
    parts = dict(source.named_modules())
    for name, part in module.named_modules():
        kind, other = type(part), parts.get(name)
        own = (kind.get_extra_state, kind.set_extra_state)
        if other is not None and kind is type(other) and not {*own} & {*_WITHOUT_EXTRA_STATE}:
            part.set_extra_state(copy.deepcopy(other.get_extra_state()))


@torch.no_grad()
def _zero(model: nn.Module, mask: Tensors) -> None:
    for name, weight in matching_parameters(mask, model).items():
        weight.masked_fill_(~mask[name].to(weight.device), 0)

"""What a mask leaves of a network."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skeletal.core.diagnosis.connectivity import reaches_output
from skeletal.core.diagnosis.effective import (
    changing_without_gradient,
    channels,
    effective_weights,
    reached_in_training,
)
from skeletal.core.diagnosis.macs import Macs, count_macs
from skeletal.core.masks.match import by_first_names, matching_parameters
from skeletal.core.model.preserve import preserve_model
from skeletal.core.model.tensors import Tensors
from skeletal.core.model.weights import stored, unwrap, weights_and_biases
from skeletal.core.plots import bars
from skeletal.core.table import Table, Tabular

_LEGEND = (
    "effective: on a path from input to output; on constant: reaches the output, but reads only what biases make",
    "dead: cannot reach the output, or reads only zeros; dead inputs, outputs: channels without an effective weight",
    "MACs: multiply-accumulate operations of the layers above",
)


@dataclass(frozen=True)
class Layer:
    """One layer of a `Diagnosis`: kept = effective + on_constant + dead + unknown."""

    name: str
    shape: tuple[int, ...]
    kept: int
    effective: int
    """on a path from the input to the output"""
    on_constant: int
    """reach the output, but read only what biases make"""
    dead: int
    """cannot reach the output, or read only zeros"""
    dead_inputs: int
    """input channels that no effective weight reads"""
    dead_outputs: int
    """output channels that no effective weight writes"""
    unknown: int = 0
    """no effect in eval mode; possibly one in train mode, in which the model does not run on the example"""
    live_inputs: int = 0
    """input channels that effective weights read"""
    live_outputs: int = 0
    """output channels that effective weights write"""

    @property
    def empty(self) -> bool:
        """Whether no weight is kept."""
        return self.kept == 0


@dataclass(frozen=True, repr=False)
class Diagnosis(Tabular):
    """What `diagnose` found; `print` shows one line per layer."""

    connected: bool | None
    """whether the output depends on the input at all; None if that cannot be probed"""
    layers: tuple[Layer, ...]
    macs: Macs
    """per example"""

    @property
    def effective(self) -> int:
        """How many kept weights lie on a path from the input to the output."""
        return sum(layer.effective for layer in self.layers)

    @property
    def effective_density(self) -> float:
        """Effective / total, over the weights the mask covers."""
        return self.effective / max(sum(math.prod(layer.shape) for layer in self.layers), 1)

    @property
    def dead_layers(self) -> tuple[str, ...]:
        """Layers without an effective weight: the empty ones, and those cut off by others."""
        return tuple(layer.name for layer in self.layers if not layer.effective and not layer.unknown)

    @property
    def narrowest(self) -> Layer | None:
        """The layer with the fewest effective weights, of those that have any; the first of several.

        How few they are ranks masks of one density well (docs/before-training.md).
        """
        return min((layer for layer in self.layers if layer.effective), key=lambda x: x.effective, default=None)

    @property
    def skip_only(self) -> tuple[str, ...]:
        """The dead layers of a connected network: its signal survives only because something leads around them."""
        return self.dead_layers if self.connected else ()

    def __repr__(self) -> str:
        kept = sum(layer.kept for layer in self.layers)
        return (
            f"Diagnosis({len(self.layers)} layers, {self.effective:,} of {kept:,} kept weights effective,"
            f" connected={self.connected})"
        )

    def _table(self) -> Table:
        rows, remarks = [], []
        for layer in self.layers:
            counts = (layer.kept, layer.effective, layer.on_constant, layer.dead, layer.dead_inputs, layer.dead_outputs)
            rows.append([layer.name, "x".join(map(str, layer.shape)), *(f"{n:,}" for n in counts)])
            said = ["empty"] if layer.empty else [] if layer.effective or layer.unknown else ["cut off"]
            remarks.append(", ".join(said + ([f"{layer.unknown:,} not known"] if layer.unknown else [])))
        columns = ["layer", "shape", "kept", "effective", "on constant", "dead", "dead inputs", "dead outputs"]
        if any(remarks):
            columns.append("remark")
            rows = [[*row, remark] for row, remark in zip(rows, remarks, strict=True)]
        return Table(columns, rows, notes=self._notes())

    def _notes(self) -> list[str]:
        kept, total = (sum(sizes) for sizes in zip(*((x.kept, math.prod(x.shape)) for x in self.layers), strict=True))
        answer = {True: "yes", False: "no: this skeleton cannot learn", None: "not known"}[self.connected]
        lines = [
            *_LEGEND,
            f"output depends on input: {answer}",
            f"kept {kept:,} of {total:,}, density {kept / max(total, 1):.6f}",
            f"effective {self.effective:,}, density {self.effective_density:.6f}",
        ]
        if (at := self.narrowest) is not None:
            lines.append(
                f"narrowest: {at.effective:,} effective weights in {at.name}, from {at.live_inputs:,} channels to"
                f" {at.live_outputs:,}"
            )
        if self.skip_only:
            lines.append(f"survives only around {', '.join(self.skip_only)}")
        for what, kept, dense in (
            ("forward", self.macs.forward_kept, self.macs.forward_dense),
            ("training", self.macs.training_kept, self.macs.training_dense),
        ):
            share = 100 * kept / max(dense, 1)
            lines.append(f"MACs per example, {what}: {kept:,} of {dense:,} ({share:.3f}%)")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, with what follows from it: what `skeletal diagnose --json` prints."""
        derived = ("effective", "effective_density", "dead_layers", "skip_only")
        narrowest = self.narrowest and self.narrowest.name
        return asdict(self) | {name: getattr(self, name) for name in derived} | {"narrowest": narrowest}

    def plot(self, axes: Any | None = None) -> Any:
        """Draw what becomes of the kept weights of each layer, as fractions of them.

        Args:
            axes: of matplotlib, to draw into; None makes a figure.

        Returns:
            The axes.

        Raises:
            MissingExtraError: matplotlib, which the extra `run` brings, is not installed.

        """
        kinds = ("effective", "on_constant", "dead", "unknown")
        shares = {
            kind.replace("_", " "): [getattr(layer, kind) / max(layer.kept, 1) for layer in self.layers]
            for kind in kinds
            if kind in kinds[:3] or any(layer.unknown for layer in self.layers)
        }
        title = f"{self.effective:,} of {sum(layer.kept for layer in self.layers):,} kept weights on a path"
        names = [layer.name for layer in self.layers]
        return bars(axes, names, shares, stacked=True, ylabel="fraction of the kept weights", title=title)


def _on_cpu(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.cpu() for name, mask in masks.items()}


def _neither(mask: Tensors, effective: Tensors, on_constant: Tensors) -> Tensors:
    """The kept weights that are neither effective nor on a constant."""
    return {name: keep & ~effective[name] & ~on_constant[name] for name, keep in mask.items()}


def _any(masks: Mapping[str, Tensor]) -> bool:
    return any(bool(mask.any()) for mask in masks.values())


def diagnose(model: nn.Module, mask: Mapping[str, Tensor], example: Any) -> Diagnosis:
    """Find out what a mask leaves of a network: dead layers and channels, effective density, multiply-adds.

    A kept weight is *effective* if it lies on a path of kept weights from the input to the output, *on a constant*
    if it reaches the output but reads only what biases make, else *dead*: no gradient can ever reach it, and it
    cannot change the output. All of this follows from the mask and the architecture, not from the weights' values; see
    `skeletal.core.diagnosis.effective.effective_weights`. Train mode counts too, because heads and losses may exist
    only there; where the model does not run in train mode on this example, what seems dead is `unknown`. The model is
    left as found.

    Args:
        model: any module, on any device.
        mask: a `Mask`, or bool tensors by parameter name.
        example: a tensor of inputs, with its batch dimension, or a batch as `prune` takes them: `(inputs, targets)` or
            a dict of the model's arguments. A few examples will do; only shapes and integers matter.

    Raises:
        MaskError: the mask belongs to another model.
        ValueError: the model does not run on the example.

    """
    model = unwrap(model)
    mask = {name: keep.detach().bool().cpu() for name, keep in by_first_names(mask, model).items()}
    parameters = matching_parameters(mask, model)
    batch = (example, None) if isinstance(example, Tensor) else example
    with preserve_model(model, training=False, seed=0):
        macs = count_macs(model, mask, batch)
        effective, on_constant = (_on_cpu(found) for found in effective_weights(model, mask, batch))
        unknown = _neither(mask, effective, on_constant)
        if _any(unknown) and (training := reached_in_training(model, mask, batch)) is not None:
            training = _on_cpu(training)
            effective = {name: reached | training[name] for name, reached in effective.items()}
            on_constant = {name: constant & ~training[name] for name, constant in on_constant.items()}
            dead = _neither(mask, effective, on_constant)
            changing = changing_without_gradient(model, mask, dead, batch) if _any(dead) else []
            unknown = {name: dead[name] for name in changing}
        connected, _ = reaches_output(model, mask, batch)
        if connected and not _any(effective):
            # Fine if the signal bypasses all kept weights; but a probe that finds no weight at all proves nothing.
            everything = {name: torch.ones_like(keep) for name, keep in mask.items()}
            if not _any(effective_weights(model, everything, batch)[0]):
                connected = None
        if connected is None:
            unknown = _neither(mask, effective, on_constant)
    owners = {id(stored(module, leaf)): module for module in model.modules() for leaf in weights_and_biases(module)[0]}
    layers = []
    for name, keep in mask.items():
        kept, useful, constant = (int(tensor.sum()) for tensor in (keep, effective[name], on_constant[name]))
        (reads, reads_not), (writes, writes_not) = channels(owners.get(id(parameters[name])), effective[name])
        open_ = int(unknown[name].sum()) if name in unknown else 0
        dead = kept - useful - constant - open_
        numbers = (kept, useful, constant, dead, reads_not, writes_not, open_, reads, writes)
        layers.append(Layer(name, tuple(keep.shape), *numbers))
    return Diagnosis(connected, tuple(layers), macs)

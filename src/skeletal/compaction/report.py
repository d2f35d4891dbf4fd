"""What removing dead channels has done to a network."""

import html
from dataclasses import asdict, dataclass
from typing import Any

from skeletal.core.plots import bars
from skeletal.core.table import Table, Tabular

_LEGEND = (
    "inputs, outputs: channels, before > after; weights: kept by the mask; dropped: those of removed channels",
    "outputs left: constant, since no input reaches them but a bias may; tied zeros, since channels added to them stay",
    "outputs gone: zeros, as they are and stay 0; unread, as nothing reads them",
)
_PADDING = "filled up: outputs of zeros in the place of dead ones, up to a multiple"


@dataclass(frozen=True)
class CutLayer:
    """One convolution, linear layer or norm of a `Report`; pairs are before and after."""

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    kept: int
    """weights that the mask keeps; 0 for a layer that it does not cover"""
    dropped: int
    """of them, those removed with dead channels"""
    constant: int
    """output channels left although no input reaches them: they emit a bias, or may do so after training"""
    zero: int
    """output channels left although they are 0, because channels tied to them are needed"""
    removed_zero: int
    """output channels removed because they are 0 and stay 0"""
    removed_unread: int
    """output channels removed because nothing reads them"""
    padding: int = 0
    """output channels of zeros in their place, which pad the width"""


@dataclass(frozen=True, repr=False)
class Report(Tabular):
    """What `compact` found and did; `print` shows one line per layer."""

    layers: tuple[CutLayer, ...]
    macs: tuple[int, int]
    """forward multiply-accumulates per example of the layers the mask covers, all weights counted: before and after"""
    held: tuple[str, ...]
    """operations around which channels were left whole, and why"""
    whole: str | None = None
    """why nothing was removed at all"""

    @property
    def summary(self) -> str:
        """How many channels are gone, in one line."""
        if self.whole is not None:
            return f"left whole, because {self.whole}"
        narrower = [layer for layer in self.layers if layer.outputs[1] < layer.outputs[0]]
        gone = sum(layer.outputs[0] - layer.outputs[1] for layer in narrower)
        return (
            f"{len(narrower)} of {len(self.layers)} layers, norms included, are narrower, by {gone:,} channels in all"
        )

    def __repr__(self) -> str:
        return f"Report({self.summary})"

    def __str__(self) -> str:
        return self.summary if self.whole is not None else super().__str__()

    def _repr_html_(self) -> str:
        return f"<div>{html.escape(self.summary)}</div>" if self.whole is not None else super()._repr_html_()

    def _table(self) -> Table:
        columns = ["layer", "inputs", "outputs", "weights", "dropped", "constant", "tied zeros", "gone: zeros",
                   "gone: unread"]  # fmt: skip
        padded = any(layer.padding for layer in self.layers)
        rows = []
        for layer in self.layers:
            counts = (layer.kept, layer.dropped, layer.constant, layer.zero, layer.removed_zero, layer.removed_unread)
            counts += (layer.padding,) if padded else ()
            pairs = (f"{before} > {after}" for before, after in (layer.inputs, layer.outputs))
            rows.append([layer.name, *pairs, *(f"{count:,}" for count in counts)])
        legend = (*_LEGEND, _PADDING) if padded else _LEGEND
        return Table([*columns, "filled up"] if padded else columns, rows, lead=self._lead(), notes=legend)

    def _lead(self) -> list[str]:
        if self.whole is not None:
            return [self.summary]
        before, after = self.macs
        kept, dropped = (sum(getattr(layer, what) for layer in self.layers) for what in ("kept", "dropped"))
        return [
            self.summary,
            f"weights dropped as dead: {dropped:,} of {kept:,} kept",
            f"MACs (multiply-accumulates) per example, forward, without the mask: {before:,} before, {after:,} after"
            f" ({100 * after / max(before, 1):.3f}%)",
            *(f"left whole: {reason}" for reason in self.held),
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)

    def plot(self, axes: Any | None = None) -> Any:
        """Draw the output channels of each layer, before and after.

        Args:
            axes: of matplotlib, to draw into; None makes a figure.

        Returns:
            The axes.

        Raises:
            MissingExtraError: matplotlib, which the extra `run` brings, is not installed.

        """
        widths = {when: [layer.outputs[i] for layer in self.layers] for i, when in enumerate(("before", "after"))}
        names = [layer.name for layer in self.layers]
        return bars(axes, names, widths, ylabel="output channels", title=self.summary)

"""What a compiled network does, and the times that it was chosen by."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from skeletal.core.plots import bars
from skeletal.core.table import Table, Tabular

DENSE_LAST = "dense, channels last"
FULL = "float32 maps"
"""ends the name of a way that keeps its maps in float32 under autocast to bfloat16"""


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer by itself, forward and backward; None where it was not measured."""

    name: str
    shape: tuple[int, ...]
    kept: int
    path: str
    sparse: float | None
    dense: float | None


_LEGEND = "sparse ms, dense ms: the layer by itself, forward and backward; - where that was not measured"


@dataclass(frozen=True, repr=False)
class EngineReport(Tabular):
    """What a compiled network does with each layer, and how long a training step took in every way tried."""

    layers: tuple[LayerTimes, ...]
    steps: dict[str, float]
    """milliseconds of forward and backward of the whole network, by way; empty where nothing was measured"""
    chosen: str
    removed: str
    """what removing dead channels has done"""
    notes: tuple[str, ...] = ()
    channels: str = ""
    """the same in one line"""

    def __repr__(self) -> str:
        return f"EngineReport({'; '.join(self._lead())})"

    def _table(self) -> Table:
        rows = []
        for layer in self.layers:
            total = max(1, torch.Size(layer.shape).numel())
            times = ("-" if ms is None else f"{ms:.2f}" for ms in (layer.sparse, layer.dense))
            shape = "x".join(map(str, layer.shape))
            rows.append([layer.name, shape, f"{layer.kept:,}", f"{layer.kept / total:.5f}", layer.path, *times])
        columns = ("layer", "shape", "kept", "density", "path", "sparse ms", "dense ms")
        steps = [f"  {way:24} {ms:10.1f} ms a step" for way, ms in self.steps.items()]
        below = [_LEGEND, *(["training steps, forward and backward:", *steps] if steps else []), "", self.removed]
        return Table(columns, rows, lead=self._lead(), notes=[*"\n".join(below).splitlines(), *self.notes[1:]])

    def _lead(self) -> list[str]:
        """What matters most, in at most five lines."""
        kept = sum(layer.kept for layer in self.layers)
        total = sum(torch.Size(layer.shape).numel() for layer in self.layers)
        sparse = sum(layer.path == "sparse" for layer in self.layers)
        return [
            f"way: {self.chosen}{self._compared()}",
            f"layers: {sparse} sparse, {len(self.layers) - sparse} dense",
            f"weights in them: {kept:,} of {total:,} ({100 * kept / max(total, 1):.3g}%)",
            *([f"channels: {self.channels}"] if self.channels else []),
            *self.notes[:1],
        ]

    def _compared(self) -> str:
        """The chosen way's time beside that of the fastest dense one, or of the fastest other one."""
        others = {way: ms for way, ms in self.steps.items() if way != self.chosen}
        if self.chosen not in self.steps or not others:
            return ""
        if not self.chosen.startswith("dense"):
            others = {way: ms for way, ms in others.items() if way.startswith("dense")} or others
        way = min(others, key=others.__getitem__)
        mine = self.steps[self.chosen]
        return f", {mine:.1f} ms a training step; {way}: {others[way]:.1f} ms, {others[way] / mine:.1f}x as long"

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)

    def plot(self, axes: Any | None = None) -> Any:
        """Draw the milliseconds of each layer by itself, sparse and dense; those not measured are left out.

        Args:
            axes: of matplotlib, to draw into; None makes a figure.

        Returns:
            The axes.

        Raises:
            MissingExtraError: matplotlib, which the extra `run` brings, is not installed.

        """
        timed = [layer for layer in self.layers if layer.sparse is not None and layer.dense is not None]
        times = {path: [getattr(layer, path) for layer in timed] for path in ("sparse", "dense")}
        names = [layer.name for layer in timed]
        return bars(axes, names, times, ylabel="forward and backward (ms)", title=self._lead()[0])

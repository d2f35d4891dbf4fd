"""What a compiled network does, and the times that it was chosen by."""

from dataclasses import dataclass

import torch

DENSE_LAST = "dense, channels last"
FULL = "float32 maps"
"""how the name of a way ends that keeps its maps in float32 under autocast to bfloat16"""


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer by itself, forward and backward; None where it was not measured."""

    name: str
    shape: tuple[int, ...]
    kept: int
    path: str
    sparse: float | None
    dense: float | None


@dataclass(frozen=True)
class EngineReport:
    """What a compiled network does with each layer, and how long a training step took in every way tried."""

    layers: tuple[LayerTimes, ...]
    steps: dict[str, float]
    """milliseconds of forward and backward of the whole network, by way; empty where nothing was measured"""
    chosen: str
    removed: str
    """what removing dead channels has done"""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self.layers), 0)
        lines = [f"{'layer':{width}}  {'shape':>18}  {'kept':>9}  {'density':>8}  path     sparse ms   dense ms"]
        for layer in self.layers:
            total = max(1, torch.Size(layer.shape).numel())
            times = [f"{'-' if ms is None else f'{ms:.2f}':>9}" for ms in (layer.sparse, layer.dense)]
            shape = "x".join(map(str, layer.shape))
            what = f"{layer.name:{width}}  {shape:>18}  {layer.kept:9,}  {layer.kept / total:8.5f}"
            lines.append(f"{what}  {layer.path:6}  {times[0]}  {times[1]}")
        lines += ["", f"way: {self.chosen}"]
        lines += [f"  {way:24} {ms:10.1f} ms a step" for way, ms in self.steps.items()]
        lines += ["", self.removed, *self.notes]
        return "\n".join(lines)

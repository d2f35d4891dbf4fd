"""Bars for each layer: what `.plot()` of masks, diagnoses and reports draws."""

from collections.abc import Mapping, Sequence
from typing import Any

from skeletal.core.extras import extra


def new_axes(layers: int) -> Any:
    """Axes of a pyplot figure, which a notebook shows by itself, wide enough for that many layers.

    Raises:
        MissingExtraError: matplotlib is not installed.

    """
    with extra("run"):
        from matplotlib import pyplot

    return pyplot.subplots(figsize=(max(6.4, 0.22 * layers + 2), 4.2), layout="constrained")[1]


def bars(
    axes: Any | None,
    layers: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    stacked: bool = False,
    log: bool = False,
    ylabel: str,
    title: str,
) -> Any:
    """Draw a group of bars, or one stacked bar, for each layer.

    Args:
        axes: of matplotlib, to draw into; None makes a figure.
        layers: names, in order; their `.weight` is left out.
        series: the heights, one for each layer, by their name in the legend.
        stacked: put the series on top of each other instead of side by side.
        log: use a logarithmic axis, which does not show zeros.
        ylabel: what the heights are, with their unit.
        title: above the axes.

    Returns:
        The axes.

    Raises:
        MissingExtraError: no axes were given, and matplotlib is not installed.

    """
    axes = new_axes(len(layers)) if axes is None else axes
    places, width, below = range(len(layers)), 0.8 if stacked else 0.8 / len(series), [0.0] * len(layers)
    for position, (name, heights) in enumerate(series.items()):
        shift = 0 if stacked else width * (position - (len(series) - 1) / 2)
        axes.bar([x + shift for x in places], heights, width, bottom=below if stacked else None, label=name)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    axes.set_xticks(list(places), [layer.removesuffix(".weight") for layer in layers], rotation=90, fontsize=8)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    if log:
        axes.set_yscale("log")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(series) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)  # beside the bars
    return axes

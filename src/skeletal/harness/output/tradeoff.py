"""Test accuracy against sparsity, and against what it cost, as one figure; what nobody beats is ringed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skeletal.core.extras import extra
from skeletal.harness.output.accuracy import draw_accuracy, is_dense, places, rounded
from skeletal.harness.output.figures import log_x, save_figure
from skeletal.harness.output.palette import curve_style
from skeletal.harness.output.pareto import on_front

RINGED = "ringed: Pareto front"
_DENSE = "_|x+"
"""markers of dense networks, should there be several"""


@dataclass(frozen=True)
class Outcome:
    """A method at a density: means over its seeds."""

    method: str
    """with the settings that tell it from others, if any"""
    density: float
    accuracy: float
    """percent"""
    macs: float | None
    """multiply-adds of finding the mask and training, None if unknown"""


def plot_tradeoff(results: list[dict[str, Any]], outcomes: Sequence[Outcome], path: Path, title: str) -> None:
    """Accuracy against sparsity as in `plot_accuracy`, and beside it against total cost.

    Args:
        results: as `plot_accuracy` takes them.
        outcomes: of these results.
        path: of the figure.
        title: above it.

    """
    with extra("run"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_accuracy(left, results)
    at = places(results)
    _ring(left, [(at.get(rounded(o.density)), o.accuracy) for o in _front(outcomes, [o.density for o in outcomes])])
    known = [outcome for outcome in outcomes if outcome.macs is not None]
    for position, method in enumerate(dict.fromkeys(o.method for o in outcomes if not is_dense(o.method))):
        _curve(right, method, curve_style(method, position), known)
    for position, method in enumerate(dict.fromkeys(o.method for o in known if is_dense(o.method))):
        marker = _DENSE[position % len(_DENSE)]
        _curve(right, method, curve_style("dense", 0) | {"marker": marker, "markersize": 12}, known)
    front = sorted(_front(known, [o.macs or 0.0 for o in known]), key=lambda o: o.macs or 0.0)
    right.plot(
        [o.macs for o in front],
        [o.accuracy for o in front],
        color="black",
        linewidth=0.8,
        linestyle=":",
        drawstyle="steps-post",
    )
    _ring(right, [(o.macs, o.accuracy) for o in front])
    log_x(right)
    right.set_xlabel("multiply-adds of kept weights, finding the mask and training")
    right.set_ylabel("test accuracy (%)")
    right.grid(alpha=0.3)
    left.set_title(RINGED, fontsize="small", loc="right")
    figure.suptitle(title)
    save_figure(figure, path)


def _curve(axes: Any, method: str, look: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    mine = sorted((o for o in outcomes if o.method == method), key=lambda o: o.density)
    axes.plot([o.macs for o in mine], [o.accuracy for o in mine], linewidth=1, label=method, **look)


def _front(outcomes: Sequence[Outcome], costs: Sequence[float]) -> list[Outcome]:
    points = [(cost, outcome.accuracy) for cost, outcome in zip(costs, outcomes, strict=True)]
    return [outcome for outcome, best in zip(outcomes, on_front(points), strict=True) if best]


def _ring(axes: Any, points: Sequence[tuple[Any, float]]) -> None:
    there = [(x, y) for x, y in points if x is not None]
    xs, ys = [x for x, _ in there], [y for _, y in there]
    axes.plot(xs, ys, "o", markersize=12, markerfacecolor="none", markeredgecolor="black")

"""Test accuracy against sparsity, as a figure."""

from math import nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from skeletal.core.extras import extra
from skeletal.harness.output.figures import save_figure
from skeletal.harness.output.palette import COLOURS, curve_style

_DASHES = ("--", ":", "-.")


def plot_accuracy(results: list[dict[str, Any]], path: Path, title: str) -> None:
    """Test accuracy against sparsity, one curve per method, as in the paper's Figure 1 and 2.

    Several results at one place, such as seeds, are drawn as their mean, with the standard deviation as a bar.
    """
    with extra("run"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    draw_accuracy(axes, results)
    axes.set_title(title)
    save_figure(figure, path)


def is_dense(label: str) -> bool:
    """Whether a curve is of the dense network, such as "dense" and "dense, epochs=3"."""
    return label.partition(",")[0] == "dense"


def rounded(density: float) -> float:
    """A density as it is drawn: seeds keep nearly the same, and even a density of 0.00014 is not 0.0001."""
    return float(f"{density:.3g}")


def places(results: list[dict[str, Any]]) -> dict[float, int]:
    """Where each density stands on the axis, densest first."""
    densities = {rounded(result["density"]) for result in results if not is_dense(result["method"])}
    return {density: place for place, density in enumerate(sorted(densities, reverse=True))}


def draw_accuracy(axes: Any, results: list[dict[str, Any]]) -> None:
    """The curves of `plot_accuracy`, on axes."""
    pruned = [result for result in results if not is_dense(result["method"])]
    densities = list(places(results))
    for position, method in enumerate(dict.fromkeys(result["method"] for result in pruned)):
        top1: dict[float, list[float]] = {}
        for result in (result for result in pruned if result["method"] == method):
            top1.setdefault(rounded(result["density"]), []).append(result["test"]["top1"])
        at = [x for x, density in enumerate(densities) if density in top1]
        seeds = [top1[densities[x]] for x in at]
        means, look = [fmean(values) for values in seeds], curve_style(method, position)
        axes.plot(at, means, label=method, linewidth=2, **look)
        if max(map(len, seeds)) > 1:
            spread = [stdev(values) if len(values) > 1 else nan for values in seeds]  # one seed says nothing of it
            axes.errorbar(at, means, spread, fmt="none", capsize=3, ecolor=look["color"])
    for position, label in enumerate(dict.fromkeys(r["method"] for r in results if is_dense(r["method"]))):
        dense = fmean(result["test"]["top1"] for result in results if result["method"] == label)
        dash = _DASHES[position % len(_DASHES)]
        axes.axhline(dense, color=COLOURS["dense"], linestyle=dash, linewidth=1, label=label)
    axes.set_xticks(range(len(densities)), [f"{100 * (1 - density):.10g}%" for density in densities])
    axes.set_xlabel("sparsity (weights removed before training)")
    axes.set_ylabel("test accuracy (%)")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 101))
    axes.grid(alpha=0.3)
    axes.legend()

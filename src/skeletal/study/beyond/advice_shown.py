"""Advice as a table, in words, and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skeletal.core.extras import extra
from skeletal.core.table import Table
from skeletal.harness.output.figures import save_figure
from skeletal.harness.output.palette import curve_style
from skeletal.study.beyond.advise import EFFECTIVE, Line, Recommendation

_HEADING = ["method", "density", "sparsity", "path", "empty layers", "effective / kept", "saliency", "per weight",
            "gradient norm", "layers agree", "overlap"]  # fmt: skip


def table(found: Mapping[str, Sequence[Line]], *, markdown: bool = False) -> str:
    """A line for each method and density; saliency and gradient norm are relative to the dense network's."""
    rows = []
    for method, lines in found.items():
        for line in lines:
            rows.append(
                [
                    method,
                    f"{line.density:g}",
                    f"{100 * (1 - line.density):g}%",
                    "yes" if line.connected else "no",
                    str(line.empty_layers),
                    f"{line.effective:.2f}",
                    f"{line.saliency:.2g}",
                    f"{line.worth:.2g}",
                    f"{line.gradient_norm:.2g}",
                    "-" if line.layer_agreement is None else f"{line.layer_agreement:.2f}",
                    "-" if line.overlap is None else f"{line.overlap:.2f}",
                ]
            )
    return Table(_HEADING, rows).shown(markdown=markdown)


def in_words(method: str, advice: Recommendation) -> str:
    """The recommendation for one method, with its reasons, in a sentence or two."""
    reasons = "; ".join(advice.reasons)
    if advice.density is None:
        return f"{method}: none of the densities looked at is safe: {reasons}"
    how_far = f"density {advice.density:g} ({100 * (1 - advice.density):g}% sparsity)"
    if not advice.reasons:
        return f"{method}: prune to {how_far} or further: nothing fails down to there, where we stopped looking"
    return f"{method}: prune to {how_far} and no further: {reasons}"


def picture(found: Mapping[str, Sequence[Line]], advised: Mapping[str, Recommendation], path: Path, title: str) -> None:
    """Draw saliency, saliency per kept weight and effective weights against density; a dot marks each recommendation.

    Raises:
        ValueError: `path` is no picture's name.

    """
    with extra("run"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    drawn = (
        ("FORCE saliency / dense", lambda line: line.saliency),
        ("saliency per kept weight / dense", lambda line: line.worth),
        ("kept weights on a path, worst seed", lambda line: line.effective),
    )
    for axes, (label, value) in zip(panels, drawn, strict=True):
        for position, (method, lines) in enumerate(found.items()):
            look = curve_style(method, position)
            shown = [(line.density, value(line)) for line in lines if value(line) > 0 or axes is panels[2]]
            axes.plot(*zip(*shown, strict=True), label=method, linewidth=1.5, markersize=4, **look)
            at = [value(line) for line in lines if line.density == advised[method].density]
            if at and (at[0] > 0 or axes is panels[2]):
                ring = {"color": look["color"], "markersize": 12, "fillstyle": "none", "markeredgewidth": 2}
                axes.plot([advised[method].density], at, "o", **ring)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("density (fraction of weights kept)")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
        if axes is not panels[2]:
            axes.set_yscale("log")
    panels[2].axhline(EFFECTIVE, color="black", linestyle="--", linewidth=0.8)
    panels[2].set_ylim(-0.03, 1.03)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.suptitle(f"{title}; ring: recommended", fontsize=10)
    save_figure(figure, path)

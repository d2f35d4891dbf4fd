"""Advice as a table, in words, and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skeletal.core.extras import extra
from skeletal.core.table import Table, Tabular
from skeletal.harness.output.figures import log_x, save_figure
from skeletal.harness.output.palette import curve_style
from skeletal.study.beyond.advise import EFFECTIVE, Advice, Line, Recommendation, recommend

_HEADING = ["method", "density", "sparsity", "path", "empty layers", "effective / kept", "saliency", "per weight",
            "gradient norm", "layers agree", "overlap"]  # fmt: skip
_LEGEND = (
    "path: from input to output, in every seed; effective / kept: share of the kept weights on such a path, worst seed",
    "saliency (FORCE's, Eq. 6), per weight (saliency / density), gradient norm (squared): 1 is the dense network",
    "layers agree, overlap: between the masks of two seeds, of layer densities and of weights; 1 is the same",
)


@dataclass(frozen=True, repr=False)
class Advised(Tabular):
    """What a sweep has found, method by method, and how far each can be pruned."""

    lines: Mapping[str, Sequence[Line]]
    """by method, densities falling"""
    title: str

    @classmethod
    def of(cls, advice: Advice, root: Path) -> "Advised":
        """What the jobs of a sweep have found; all of them have to be finished, in `root`."""
        lines = {name: advice.lines(pruning, root) for name, pruning in zip(advice.names, advice.prunings, strict=True)}
        return cls(lines, f"{advice.setup.model} on {advice.setup.data}, at initialization")

    @cached_property
    def recommendations(self) -> dict[str, Recommendation]:
        """How far to prune, by method."""
        return {method: recommend(lines) for method, lines in self.lines.items()}

    def __repr__(self) -> str:
        advised = ", ".join(f"{method} {found.density}" for method, found in self.recommendations.items())
        return f"Advised({self.title}; densities: {advised})"

    def in_words(self) -> list[str]:
        """One line per method."""
        return [in_words(method, found) for method, found in self.recommendations.items()]

    def table(self, *, markdown: bool = False) -> str:
        """See the function `table`."""
        return table(self.lines, markdown=markdown)

    def _table(self) -> Table:
        found = _table(self.lines)
        return Table(found.columns, found.rows, lead=(self.title, *self.in_words()), notes=found.notes)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, by method: what `skeletal advise --json` prints."""
        return {
            method: {"lines": [asdict(x) | {"worth": x.worth} for x in self.lines[method]], **asdict(found)}
            for method, found in self.recommendations.items()
        }

    def save(self, path: Path) -> None:
        """Draw the picture into a file.

        Raises:
            ValueError: `path` is no picture's name.

        """
        picture(self.lines, self.recommendations, path, self.title)

    def plot(self) -> Any:
        """Draw the picture as a figure of pyplot's, which a notebook shows by itself; returns it."""
        with extra("run"):
            from matplotlib import pyplot

        return _draw(pyplot.figure(**_SIZE), self.lines, self.recommendations, self.title)


def table(found: Mapping[str, Sequence[Line]], *, markdown: bool = False) -> str:
    """One line per method and density; saliency and gradient norm are relative to the dense network's."""
    return _table(found).shown(markdown=markdown)


def _table(found: Mapping[str, Sequence[Line]]) -> Table:
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
    return Table(_HEADING, rows, notes=_LEGEND)


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

    save_figure(_draw(Figure(**_SIZE), found, advised, title), path)


_SIZE: dict[str, Any] = {"figsize": (10.5, 3.8), "layout": "constrained"}


def _draw(figure: Any, found: Mapping[str, Sequence[Line]], advised: Mapping[str, Recommendation], title: str) -> Any:
    panels: Any = figure.subplots(1, 3)
    drawn = (
        ("FORCE saliency / dense", lambda line: line.saliency),
        ("saliency per kept weight / dense", lambda line: line.worth),
        ("kept weights on a path, worst seed", lambda line: line.effective),
    )
    for axes, (label, value) in zip(panels, drawn, strict=True):
        for position, (method, lines) in enumerate(found.items()):
            look = curve_style(method.partition(",")[0], position)
            shown = [(line.density, value(line)) for line in lines if value(line) > 0 or axes is panels[2]]
            axes.plot([x for x, _ in shown], [y for _, y in shown], label=method, linewidth=1.5, markersize=4, **look)
            at = [value(line) for line in lines if line.density == advised[method].density]
            if at and (at[0] > 0 or axes is panels[2]):
                ring = {"color": look["color"], "markersize": 12, "fillstyle": "none", "markeredgewidth": 2}
                axes.plot([advised[method].density], at, "o", **ring)
        log_x(axes)
        axes.invert_xaxis()
        axes.set_xlabel("density (fraction of weights kept)")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
        if axes is not panels[2] and any(value(line) > 0 for lines in found.values() for line in lines):
            axes.set_yscale("log")
    panels[2].axhline(EFFECTIVE, color="black", linestyle="--", linewidth=0.8)
    panels[2].set_ylim(-0.03, 1.03)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.suptitle(f"{title}; ring: recommended", fontsize=10)
    return figure

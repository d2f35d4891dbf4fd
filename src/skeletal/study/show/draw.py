"""Draw an item's points as the paper does: mean over seeds, standard deviation as a band, published numbers beside."""

import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from skeletal.core.choices import require
from skeletal.core.extras import extra
from skeletal.harness.output.figures import save_figure
from skeletal.study.paper.item import Item, Measurement, Panel, Reference
from skeletal.study.paper.scales import Scale
from skeletal.study.show import legend
from skeletal.study.show.plot_styles import looks, method_of

_COLUMNS = 3
_WIDTH, _HEIGHT = 3.3, 2.3  # inches per panel: a column of a two-column page
_FONT = 7.5  # points
_MARGIN = 0.05  # inches, beside the notes
_HEADING = 0.25  # inches
_LINE = 0.15  # inches of one line of the legend or the notes
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw(
    item: Item, points: Sequence[Measurement], scale: Scale, *, panels: Sequence[str] | None = None, notes: bool = True
) -> Any:
    """Return a matplotlib figure: an item's panels side by side, at most three in a row, one legend and notes below.

    A line is the mean over seeds at each x, its band one (sample) standard deviation up and down. Series without points
    are named in the notes. The dense network is a horizontal dashed line; published numbers are hollow marks. On a log
    axis a mean of 0 is a cross at the bottom.

    Args:
        item: a figure.
        points: of `gather.points`; those of other panels are left alone.
        scale: what the points were run at.
        panels: keys of the panels to draw, with the colours they have beside the others; by default all that are to be
            run at this scale.
        notes: say below what is missing, and the scale; above, the scale's warning.

    Raises:
        ValueError: the item has no such panel.

    """
    with extra("run"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure

    shown, expected = shown_panels(item, points, scale, panels)
    # Of all panels, so that one drawn alone has the colours it has beside the others.
    look = looks(name for panel in item.at(scale).panels for name in (*expected[panel.key], *_others(panel, points)))
    drawn = [point for point in points if point.panel in {panel.key for panel in shown}]
    columns = min(_COLUMNS, len(shown) if len(shown) != 4 else 2)
    rows = math.ceil(len(shown) / columns)
    width = _WIDTH * columns
    said = [*legend.notes(shown, expected, drawn), f"Scale: {scale.name}. {scale.about}"] if notes else []
    lines = legend.wrapped(said, width - 2 * _MARGIN, _FONT)
    handles = legend.handles(shown, drawn, look)
    in_row, legend_rows = legend.arranged([handle.get_label() for handle in handles], width)
    below = _LINE * (legend_rows + 1 + len(lines)) + 0.1
    panes = rows * _HEIGHT + (_HEADING if notes and scale.warning else 0)
    with rc_context(_STYLE):
        figure: Any = Figure(figsize=(width, panes + below), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=[panes, below])
        if notes and scale.warning:
            upper.suptitle(scale.warning, color="#B00020", fontsize=9, fontweight="bold")
        grid = upper.subplots(rows, columns, squeeze=False).ravel()
        for panel, axes in zip(shown, grid, strict=False):
            _draw_panel(axes, panel, [point for point in drawn if point.panel == panel.key], look)
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        if handles:
            place = {"loc": "upper center", "borderaxespad": 0}
            lower.legend(handles=handles, ncols=in_row, title=legend.spread(drawn), **place)
        lower.text(_MARGIN / width, 0.02, "\n".join(lines), va="bottom", color="#444444", linespacing=1.3)
    return figure


def shown_panels(
    item: Item, points: Sequence[Measurement], scale: Scale, keys: Sequence[str] | None = None
) -> tuple[list[Panel], dict[str, list[str]]]:
    """Return the panels to draw, and the series that every panel of the item should have at this scale.

    Without `keys`, panels for which nothing is run at this scale are left out, if there are others.
    """
    panels, cells = {panel.key: panel for panel in item.at(scale).panels}, item.cells(scale)
    expected = {key: list(dict.fromkeys(cell.series for cell in cells if cell.panel == key)) for key in panels}
    for key in keys or ():
        require(f"panel of {item.name}", key, panels)
    if keys is None:
        found = {point.panel for point in points}
        keys = [key for key in panels if expected[key] or key in found] or list(panels)
    return [panels[key] for key in keys], expected


def save(figure: Any, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.svg and `stem`.png, each whole or not at all; return their paths."""
    paths = (stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png"))
    for path in paths:
        save_figure(figure, path)
    return paths


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation; one value has no deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


_STYLE = {
    "font.size": _FONT,
    "axes.titlesize": 8,
    "axes.labelsize": _FONT,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": legend.FONT,
    "legend.title_fontsize": legend.FONT,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.6,
}


def _others(panel: Panel, points: Sequence[Measurement]) -> list[str]:
    """Series of a panel that the item does not ask for: found or published all the same."""
    found = [point.series for point in points if point.panel == panel.key]
    return [*found, *(reference.series for reference in panel.published)]


def _draw_panel(axes: Any, panel: Panel, points: Sequence[Measurement], look: dict[str, dict[str, Any]]) -> None:
    axes.set_title(_folded(f"({panel.key}) {panel.title}" if panel.key else panel.title, 52))
    percent = panel.x_scale == "sparsity" and "%" not in panel.x_label
    axes.set_xlabel(f"{panel.x_label} (%)" if percent else panel.x_label)
    axes.set_ylabel(_folded(panel.y_label, 28))
    if panel.y_scale == "log":
        axes.set_yscale("log")
    marks: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.3}
    if panel.x_scale == "layers":
        marks |= {"markersize": 2.8, "linewidth": 0.9}
    empty: dict[str, list[float]] = {}
    for label in look:
        values = _by_x([point for point in points if point.series == label and math.isfinite(point.y)])
        if not values:
            continue
        if method_of(label) == "dense":
            _draw_dense(axes, [y for group in values.values() for y in group], look[label])
            continue
        log = panel.y_scale == "log"
        means = {x: statistics.fmean(group) for x, group in values.items()}
        places = list(means)
        line = [mean if mean > 0 or not log else math.nan for mean in means.values()]  # a gap in the line
        axes.plot(places, line, label=label, zorder=3, markevery=_marked(line), **(look[label] | marks))
        _draw_band(axes, values, look[label]["color"], log)
        empty[label] = [x for x, mean in means.items() if log and mean <= 0]
    if not points:
        axes.text(0.5, 0.5, "nothing has run yet", color="#777777", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    _draw_published(axes, panel, look)
    _scale_x(axes, panel, _range_of(panel, points))
    if points and panel.y_scale == "log":
        _label_log_y(axes)
    for row, (label, places) in enumerate((label, places) for label, places in empty.items() if places):
        height = [0.02 + 0.035 * row] * len(places)  # at the lower edge, one row per series, so that none hides another
        cross = {"color": look[label]["color"], "markersize": 3.5, "transform": axes.get_xaxis_transform()}
        axes.plot(places, height, "x", zorder=4, **cross)
    if panel.y_max is not None:
        axes.set_ylim(-0.03 * panel.y_max if panel.y_scale == "linear" else None, panel.y_max)


def _marked(line: Sequence[float]) -> list[int]:
    """Where to put marks: at each of 53 layers they would hide the line, but without one a lone point is not seen."""
    every = math.ceil(len(line) / 20)
    alone = _alone(line)
    return [i for i in range(len(line)) if i % every == 0 or alone[i]]


def _alone(line: Sequence[float]) -> list[bool]:
    """Of each number, whether there is none on either side of it."""
    padded = [math.nan, *line, math.nan]
    return [math.isnan(before) and math.isnan(after) for before, after in zip(padded, padded[2:], strict=False)]


def _folded(text: str, width: int) -> str:
    """Text in lines of about the same length, at most `width` characters."""
    rows = math.ceil(len(text) / width)
    even = min(width, math.ceil(len(text) / rows) + 6) if rows > 1 else width
    return textwrap.fill(text, even, break_on_hyphens=False)


def _by_x(points: Iterable[Measurement]) -> dict[float, list[float]]:
    values: dict[float, list[float]] = {}
    for point in sorted(points, key=lambda point: point.x):
        values.setdefault(point.x, []).append(point.y)
    return values


def _draw_band(axes: Any, values: dict[float, list[float]], colour: str, log: bool) -> None:
    spread = {x: mean_and_std(group) for x, group in values.items()}
    places = list(spread)
    deviations = [math.nan if std is None else std for _, std in spread.values()]  # one seed says nothing of it
    means = [mean for mean, _ in spread.values()]
    bottom = [mean - std for mean, std in zip(means, deviations, strict=True)]
    top = [mean + std for mean, std in zip(means, deviations, strict=True)]
    if log:  # what reaches down to 0 would have no place on the axis
        bottom = [max(low, mean / 10) if mean > 0 else math.nan for low, mean in zip(bottom, means, strict=True)]
    if any(std for _, std in spread.values()):
        axes.fill_between(places, bottom, top, color=colour, alpha=0.2, linewidth=0, zorder=2)
        # A band needs two points; one that stands alone gets a line.
        if alone := [i for i, at in enumerate(_alone(deviations)) if at and not math.isnan(deviations[i])]:
            ends = ([side[i] for i in alone] for side in (places, bottom, top))
            axes.vlines(*ends, color=colour, alpha=0.4, zorder=2)


def _draw_dense(axes: Any, values: Sequence[float], look: dict[str, Any]) -> None:
    mean, std = mean_and_std(values)
    axes.axhline(mean, linewidth=0.9, label="Dense", color=look["color"], linestyle=look["linestyle"], zorder=1.5)
    if std:
        axes.axhspan(mean - std, mean + std, color=look["color"], alpha=0.12, linewidth=0, zorder=1)


def _draw_published(axes: Any, panel: Panel, look: dict[str, dict[str, Any]]) -> None:
    """Hollow marks: the paper's in the shape of their method, others' small and joined by dots."""
    hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1, "zorder": 5}
    lines: dict[str, list[Reference]] = {}
    for reference in panel.published:
        colour = look[reference.series]["color"]
        if method_of(reference.series) == "dense":  # it has no place on the axis: at its edge
            place = {"transform": axes.get_yaxis_transform(), "clip_on": False}
            axes.plot([0], [reference.y], linestyle="", marker="o", markersize=6, color=colour, **place, **hollow)
        elif legend.publisher(reference) == legend.PAPER:
            mark = look[reference.series]["marker"]
            axes.plot([reference.x], [reference.y], linestyle="", marker=mark, markersize=6.5, color=colour, **hollow)
        else:
            lines.setdefault(reference.series, []).append(reference)
    for series, references in lines.items():
        places, values = zip(*sorted((reference.x, reference.y) for reference in references), strict=True)
        shape = {"marker": "d", "markersize": 3, "linestyle": ":", "linewidth": 0.8, "alpha": 0.8}
        axes.plot(places, values, color=look[series]["color"], **(hollow | shape | {"markeredgewidth": 0.6}))


def _range_of(panel: Panel, points: Sequence[Measurement]) -> list[float]:
    """Where there are ticks: where we or the paper have a number. What others have beyond that is not drawn."""
    ours = {point.x for point in points if method_of(point.series) != "dense"}
    stated = [reference for reference in panel.published if method_of(reference.series) != "dense"]
    papers = {reference.x for reference in stated if legend.publisher(reference) == legend.PAPER}
    return sorted(ours | papers or {reference.x for reference in stated})


def _scale_x(axes: Any, panel: Panel, places: list[float]) -> None:
    with extra("run"):
        from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    if panel.x_scale == "layers":
        axes.set_xlim(0.2, max(places, default=1) + 0.8)
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    if panel.x_scale not in ("sparsity", "log") or not places:
        return
    axes.set_xscale("log")
    if panel.x_scale == "sparsity":
        axes.set_xlim(places[-1] * 1.25, places[0] / 1.25)
        axes.xaxis.set_major_formatter(lambda density, _: f"{100 * (1 - density):.6g}")
    else:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(FixedLocator(_apart(places)))
    axes.xaxis.set_minor_locator(NullLocator())


def _label_log_y(axes: Any) -> None:
    """Powers of ten; round numbers in between where there would be one power or none."""
    with extra("run"):
        from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

    low, high = axes.get_ylim()
    if high / low < 10:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_power)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _apart(places: list[float]) -> list[float]:
    """Leave out ticks too close to the one before for their labels."""
    width = 0.085 * math.log(places[-1] / places[0])
    kept: list[float] = []
    for place in places:
        if not kept or math.log(place / kept[-1]) >= width:
            kept.append(place)
    return kept


def _power(value: float, _: object) -> str:
    """1,000 and 0.01 as they are, anything longer as a power of ten."""
    if value <= 0:
        return ""
    exponent = round(math.log10(value))
    if -3 < exponent < 5 or not math.isclose(value, 10.0**exponent):
        return f"{value:,g}"
    return "10" + str(exponent).translate(_SUPERSCRIPT)

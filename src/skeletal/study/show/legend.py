"""What stands below a figure: the legend, how many seeds there are, and what is missing."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from skeletal.core.extras import extra
from skeletal.study.paper.item import Measurement, Panel, Reference

PAPER = "paper (stated)"
FONT = 7  # points
_HANDLE = 4.8 * FONT / 72  # inches: an entry's line, and matplotlib's gaps before and after its words


def publisher(reference: Reference) -> str:
    """Return what the legend calls the source of a published number; all the paper's are one."""
    return PAPER if reference.source.startswith("paper") else reference.source.partition(",")[0]


def handles(panels: Iterable[Panel], points: Iterable[Measurement], look: Mapping[str, dict[str, Any]]) -> list[Any]:
    """Return matplotlib lines for what is drawn: one per series, and a hollow mark for each publisher."""
    with extra("run"):
        from matplotlib.lines import Line2D

    published = [reference for panel in panels for reference in panel.published]
    present = {point.series for point in points} | {reference.series for reference in published}
    lines = [Line2D([], [], label=label, **look[label]) for label in look if label in present]
    for source in dict.fromkeys(map(publisher, published)):
        mark: dict[str, Any] = {"marker": "d", "linestyle": ":", "linewidth": 0.8}
        mark = {"marker": "o", "linestyle": ""} if source == PAPER else mark
        lines.append(Line2D([], [], label=source, color="#444444", markerfacecolor="none", **mark))
    return lines


def _wide(text: str, size: float) -> float:
    """Inches."""
    with extra("run"):
        from matplotlib.textpath import TextPath

    return TextPath((0, 0), text, size=size).get_extents().width / 72


def arranged(labels: Sequence[str], width: float) -> tuple[int, int]:
    """How many columns and rows a legend of at most `width` inches has; matplotlib fills column by column."""
    wide = [_wide(label, FONT) for label in labels]
    for columns in range(len(labels), 1, -1):
        rows, longer = divmod(len(labels), columns)  # the first `longer` columns have one entry more
        sizes = iter(wide)
        parts = [list(islice(sizes, rows + (column < longer))) for column in range(columns)]
        if sum(map(max, parts)) + _HANDLE * columns <= width:
            return columns, rows + (longer > 0)
    return 1, len(labels)


def spread(points: Iterable[Measurement]) -> str:
    """Say how many seeds the means are of, and what the band is."""
    counts = Counter((point.panel, point.series, point.x) for point in points).values()
    fewest, most = min(counts, default=0), max(counts, default=0)
    if most <= 1:
        return "one seed, so no band" if most else ""
    seeds = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    return f"mean of {seeds}; band: one standard deviation"


def notes(panels: Sequence[Panel], expected: Mapping[str, Sequence[str]], points: Sequence[Measurement]) -> list[str]:
    """Say what is not there, and what a cross is.

    Args:
        panels: those of the figure.
        expected: series that there should be, by the panel's key; none for a panel that is not at this scale.
        points: all that is drawn.

    """
    said = []
    for panel in panels:
        found = {point.series for point in points if point.panel == panel.key}
        if missing := [label for label in expected[panel.key] if label not in found]:
            place = f" in ({panel.key})" if panel.key and len(panels) > 1 else ""
            said.append(f"Missing{place}: {', '.join(missing)}.")
    if absent := [f"({key})" for key, series in expected.items() if key and not series]:
        said.append(f"Not at this scale: {', '.join(absent)}.")
    logarithmic = {panel.key for panel in panels if panel.y_scale == "log"}
    if any(point.y == 0 and point.panel in logarithmic for point in points):
        said.append("Crosses at the lower edge: 0.")
    return said


def wrapped(said: Iterable[str], width: float, size: float) -> list[str]:
    """Return lines of at most `width` inches, in letters of `size` points."""
    lines: list[str] = []
    for note in said:
        first, *words = note.split()
        lines.append(first)
        for word in words:
            longer = f"{lines[-1]} {word}"
            if _wide(longer, size) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
    return lines

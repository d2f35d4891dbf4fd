"""What a study is made of: an item of the paper, its panels, its jobs, and the points read from their results."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from skeletal.harness.ledger import Ledger
from skeletal.study.paper.jobs import Job
from skeletal.study.paper.scales import SCALES, Scale
from skeletal.study.paper.series import sparsity


@dataclass(frozen=True)
class Measurement:
    """One number of ours: one seed of one run."""

    panel: str
    """`Panel.key`"""
    series: str
    """legend label: FORCE, SNIP-MB, Dense, "T=60" """
    x: float
    """on a "sparsity" axis the density (fraction kept), dense at 1; on a "layers" axis the layer's number, from 1"""
    y: float
    """accuracies in percent, fractions of weights from 0 to 1, the rest as measured"""
    seed: int
    run: str
    """name of the run folder, for tracing"""
    cost: Ledger = field(default_factory=Ledger)
    """of that run, as far as it records it"""


@dataclass(frozen=True)
class Reference:
    """One number somebody else published."""

    series: str
    x: float
    y: float
    source: str
    """where it stands: "paper, Table 1" """


@dataclass(frozen=True)
class Panel:
    """One coordinate system of a figure, or one quantity of a table."""

    key: str
    """ "a", or "" if the item has one panel"""
    title: str
    x_label: str
    y_label: str
    x_scale: Literal["sparsity", "log", "linear", "layers"]
    """"sparsity": x is the density, drawn falling on a log axis, its ticks labelled with the percentage pruned"""
    y_scale: Literal["linear", "log"]
    published: tuple[Reference, ...] = ()
    y_max: float | None = None
    """where the axis ends, for panels that zoom into the bottom"""


@dataclass(frozen=True)
class Cell:
    """One job's place in an item: the panel and series it belongs to, and how its numbers are read."""

    panel: str
    series: str
    job: Job
    read: Callable[[dict[str, Any]], list[tuple[float, float]]]
    """from the job's result to (x, y)"""
    baseline: Job | None = None
    """the job whose y its own are divided by"""

    @property
    def jobs(self) -> tuple[Job, ...]:
        """What has to be finished before this can be drawn."""
        return (self.job,) if self.baseline is None else (self.baseline, self.job)


@dataclass(frozen=True)
class Item:
    """A figure or a table."""

    name: str
    """fig2, table1"""
    title: str
    """with `{structure}` and `{schedule}` for the sparsities that differ by scale, which `at` fills in"""
    caption: str
    """what it shows, in our words, with its place in the paper; filled in like the title"""
    panels: tuple[Panel, ...]
    """as in the paper; what is drawn at a scale is `item.at(scale).panels`"""
    cells: Callable[[Scale], list[Cell]]

    def jobs(self, scale: Scale) -> list[Job]:
        """Return every job of the item, once."""
        return list(dict.fromkeys(job for cell in self.cells(scale) for job in cell.jobs))

    def at(self, scale: Scale) -> "Item":
        """Return the item with its panels and sparsities as they are at this scale.

        Where another network or data set stands in for the paper's the title says so, and what was published for
        the paper's is left out.
        """
        here, there = _places(self.cells(scale)), _places(self.cells(SCALES["paper"]))

        def fitted(panel: Panel) -> Panel:
            ours, papers = here.get(panel.key), there.get(panel.key)
            if ours == papers:
                return panel
            if ours is None:
                return replace(panel, title=f"{panel.title} (not at this scale)")
            return replace(panel, title=f"{', '.join(sorted(ours))} (for {panel.title})", published=())

        said = {"structure": sparsity(scale.structure_density), "schedule": sparsity(scale.schedule_density)}
        title, caption = (text.format(**said) for text in (self.title, self.caption))
        return replace(self, title=title, caption=caption, panels=tuple(map(fitted, self.panels)))


def _places(cells: list[Cell]) -> dict[str, set[str]]:
    """The networks and data sets of each panel."""
    found: dict[str, set[str]] = {}
    for cell in cells:
        found.setdefault(cell.panel, set()).add(f"{cell.job.setup.model} on {cell.job.setup.data}")
    return found

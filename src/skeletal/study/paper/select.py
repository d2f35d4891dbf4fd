"""Which jobs of an item are meant."""

from collections.abc import Sequence

from skeletal.core.choices import named
from skeletal.study.paper.item import Cell, Item
from skeletal.study.paper.jobs import Job
from skeletal.study.paper.scales import Scale


def select(
    items: Sequence[Item], scale: Scale, *, panels: Sequence[str] = (), methods: Sequence[str] = ()
) -> list[Job]:
    """Return every job of the items once; the first seed of everything before the second of anything.

    Args:
        items: from `items_named`.
        scale: from `scale_named`.
        panels: if any, only these panels' jobs.
        methods: if any, only these series' jobs, by their labels.

    Raises:
        ValueError: no item has such a panel or series at this scale.

    """
    cells = [cell for item in items for cell in item.cells(scale)]
    panels = _named("panel", panels, [cell.panel for cell in cells])
    methods = _named("method", methods, [cell.series for cell in cells])

    def meant(cell: Cell) -> bool:
        return (not panels or cell.panel in panels) and (not methods or cell.series in methods)

    jobs = dict.fromkeys(job for cell in cells if meant(cell) for job in cell.jobs)
    return sorted(jobs, key=lambda job: job.setup.seed)


def _named(what: str, asked: Sequence[str], there: Sequence[str]) -> list[str]:
    """The names asked for, in the spelling of those that are there."""
    return [named(what, name, dict.fromkeys(there)) for name in asked]

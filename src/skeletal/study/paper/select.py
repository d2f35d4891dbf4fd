"""Which jobs of an item are meant."""

from collections.abc import Sequence

from skeletal.core.choices import require
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
    for what, asked, there in (
        ("panel", panels, {cell.panel: None for cell in cells}),
        ("method", methods, {cell.series: None for cell in cells}),
    ):
        for name in asked:
            require(what, name, there)

    def meant(cell: Cell) -> bool:
        return (not panels or cell.panel in panels) and (not methods or cell.series in methods)

    jobs = dict.fromkeys(job for cell in cells if meant(cell) for job in cell.jobs)
    return sorted(jobs, key=lambda job: job.setup.seed)

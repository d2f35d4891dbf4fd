"""Which jobs of an item are meant."""

from collections.abc import Sequence

from skeletal.core.choices import named, spelled
from skeletal.study.paper.item import Cell, Item
from skeletal.study.paper.jobs import Job
from skeletal.study.paper.scales import SCALES, Scale


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
        ValueError: no item has such a panel or series at this scale; names scales that have it.

    """
    cells = [cell for item in items for cell in item.cells(scale)]
    panels = _named("panel", panels, [cell.panel for cell in cells])
    _refuse_methods_of_other_scales(items, scale, methods, {cell.series for cell in cells})
    methods = _named("method", methods, [cell.series for cell in cells])

    def meant(cell: Cell) -> bool:
        return (not panels or cell.panel in panels) and (not methods or cell.series in methods)

    jobs = dict.fromkeys(job for cell in cells if meant(cell) for job in cell.jobs)
    return sorted(jobs, key=lambda job: job.setup.seed)


def _refuse_methods_of_other_scales(items: Sequence[Item], scale: Scale, asked: Sequence[str], here: set[str]) -> None:
    for name in asked:
        if spelled(name, here) in here:
            continue
        found = {other.name: {cell.series for item in items for cell in item.cells(other)} for other in SCALES.values()}
        at = [other for other, series in found.items() if spelled(name, series) in series]
        if at:
            items_named = ", ".join(item.name for item in items)
            raise ValueError(
                f"{name} is left out of {items_named} at scale {scale.name}: choose --scale {' or '.join(at)}"
            )


def _named(what: str, asked: Sequence[str], there: Sequence[str]) -> list[str]:
    """The names asked for, in the spelling of those that are there."""
    return [named(what, name, dict.fromkeys(there)) for name in asked]

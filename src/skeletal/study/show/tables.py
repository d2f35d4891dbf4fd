"""Tables: our mean, standard deviation and number of seeds beside what was published, as Markdown, LaTeX or CSV."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from skeletal.core.choices import require
from skeletal.core.table import Table
from skeletal.harness.ledger import Ledger, readable
from skeletal.study.items.accuracy import named
from skeletal.study.paper import published
from skeletal.study.paper.collect import points
from skeletal.study.paper.item import Item, Panel, Reference
from skeletal.study.paper.scales import SCALES, Scale
from skeletal.study.paper.series import sparsity

FORMATS = ("markdown", "csv", "latex")
COST_COLUMNS = ("finding_macs", "training_macs")
COST = "multiply-adds, finding + training"


@dataclass(frozen=True)
class Entry:
    """Everything known about one place in a table."""

    panel: str
    series: str
    x: float
    values: tuple[float, ...]
    """ours, one for each seed"""
    runs: tuple[str, ...]
    """the run folders they come from"""
    references: tuple[Reference, ...]
    costs: tuple[Ledger, ...] = ()
    """of these runs"""

    def text(self, spec: str) -> str:
        """Ours for a reader, numbers by a format `spec`: "69.8 ± 0.2 (3)"; one seed has no deviation."""
        if not self.values:
            return ""
        spread = format(stdev(self.values), spec) if len(self.values) > 1 else "n/a"
        return f"{fmean(self.values):{spec}} ± {spread} ({len(self.values)})"

    def macs(self, part: str) -> float | None:
        """What the runs' `finding` or `training` took: multiply-adds of kept weights, the mean; None if unknown."""
        known = [getattr(cost, part) for cost in self.costs]
        return fmean(cost.macs_kept for cost in known) if known and None not in known else None

    def cost(self) -> str:
        """Both for a reader, "12 G + 3.4 T"; empty without either, as in runs of earlier versions."""
        parts = [self.macs("finding"), self.macs("training")]
        return "" if parts == [None, None] else " + ".join("?" if m is None else readable(m).strip() for m in parts)


def entries(item: Item, scale: Scale, root: Path) -> list[Entry]:
    """Return what is known of an item at a scale, ours and published, by panel, series and x."""
    ours: dict[tuple[str, str, float], list] = {}
    order = {(cell.panel, cell.series): None for cell in item.cells(scale)}
    for point in points(item, scale, root):
        ours.setdefault((point.panel, point.series, point.x), []).append(point)
    theirs: dict[tuple[str, str, float], list[Reference]] = {}
    for panel in item.at(scale).panels:
        for reference in panel.published:
            theirs.setdefault((panel.key, reference.series, reference.x), []).append(reference)
            order.setdefault((panel.key, reference.series))
    panels = [panel.key for panel in item.panels]
    lines = sorted(order, key=lambda line: panels.index(line[0]))
    found = []
    for line in lines:
        for key in sorted({key for key in ours | theirs if key[:2] == line}, key=lambda key: -key[2]):
            mine = sorted(ours.get(key, ()), key=lambda point: point.seed)
            values, runs = tuple(point.y for point in mine), tuple(point.run for point in mine)
            costs = tuple(point.cost for point in mine)
            found.append(Entry(*key, values, runs, tuple(theirs.get(key, ())), costs))
    return found


def table(item: Item, scale: Scale, root: Path, *, format: str = "markdown", trace: bool = False) -> str:
    """Return an item as a table.

    Args:
        item: a table, or a figure as numbers.
        scale: whose runs are read.
        root: folder of run folders.
        format: one of `FORMATS`. CSV has a line for each number, always with the names of its run folders.
        trace: also tell these in the other formats, below the table.

    Raises:
        ValueError: another format, or a damaged run folder.

    """
    require("format", format, FORMATS)
    if item.name == "table3":
        tables, known = [shares()], []
        if format == "csv":
            return tables[0].csv()
    else:
        known = entries(item, scale, root)
        if format == "csv":
            return _long(item, known).csv()
        tables = [
            _of_panel(panel, [entry for entry in known if entry.panel == panel.key]) for panel in item.at(scale).panels
        ]
    text = "\n\n".join(map(_markdown if format == "markdown" else Table.latex, tables))
    if item.name != "table3":
        said = f"mean ± standard deviation (seeds); scale {scale.name}: {scale.about}"
        text += f"\n\n{said}" if format == "markdown" else f"\n% {said}"
    if trace:
        mark = "" if format == "markdown" else "% "
        traced = [
            f"{mark}{entry.panel} {entry.series} {entry.x:g}: {', '.join(entry.runs)}".replace("  ", " ")
            for entry in known
            if entry.runs
        ]
        text += "\n\n" + "\n".join(traced)
    return text


def _x_name(panel: Panel, x: float) -> str:
    if panel.x_scale != "sparsity":
        return f"{x:g}"
    return "dense" if x == 1 else sparsity(x)


def _of_panel(panel: Panel, known: Sequence[Entry]) -> Table:
    """Series down, x across; layers, of which there are many, down and series across."""
    descending = panel.x_scale == "sparsity"
    spec = ".1f" if "%" in panel.y_label else ",.0f" if panel.y_label == "weights left" else ".3g"
    xs = sorted({entry.x for entry in known}, reverse=descending)
    rows: list[tuple[str, ...]] = []
    for series in dict.fromkeys(entry.series for entry in known):
        mine = {entry.x: entry for entry in known if entry.series == series}
        if any(entry.values for entry in mine.values()):
            rows.append((series, *(mine[x].text(spec) if x in mine else "" for x in xs)))
        costs = [mine[x].cost() if x in mine else "" for x in xs]
        if panel.x_scale == "sparsity" and any(costs):
            rows.append((f"{series}: {COST}", *costs))
        sources = dict.fromkeys(reference.source for entry in mine.values() for reference in entry.references)
        for source in sources:
            said = {r.x: f"{r.y:{spec}}" for entry in mine.values() for r in entry.references if r.source == source}
            rows.append((f"{series}: {source}", *(said.get(x, "") for x in xs)))
    names = tuple(_x_name(panel, x) for x in xs)
    key = f"({panel.key}) " if len(panel.key) == 1 else ""
    title = f"{key}{panel.title}: {panel.y_label}"
    if panel.x_scale != "layers":
        return Table((panel.x_label, *names), rows, title)
    turned = tuple(zip(names, *(row[1:] for row in rows), strict=True)) if rows else ()
    return Table((panel.x_label, *(row[0] for row in rows)), turned, title)


def shares() -> Table:
    """Table 3, counted on the paper's networks, whatever the scale; the printed numbers below each row."""
    import torch

    from skeletal.harness import models
    from skeletal.harness.data import SPECS
    from skeletal.harness.models.shares import parameter_shares

    rows = []
    for pair, printed in published.TABLE_3.items():
        task = SCALES["paper"].trained[pair]
        spec = SPECS[task.data]
        with torch.device("meta"):
            network = models.create(
                task.model, num_classes=spec.num_classes, in_channels=spec.channels, image_size=spec.image_size
            )
        found = parameter_shares(network)
        counted = (found.conv, found.fully_connected, found.batch_norm, found.bias, found.prunable, found.total)
        rows.append((named(pair), *(f"{value:.2f}" for value in counted)))
        rows.append((f"{named(pair)}: paper, Table 3", *(f"{value:.2f}" for value in printed)))
    columns = ("network", *(f"{name} (%)" for name in published.TABLE_3_COLUMNS[:-1]), "Total (millions)")
    return Table(columns, rows, "Percent of all parameters by type of layer")


def _markdown(table: Table) -> str:
    return f"**{table.title}**\n\n{table.markdown(padded=False) if table.rows else 'Nothing has run.'}"


def _long(item: Item, known: Sequence[Entry]) -> Table:
    """A line for each number and each source, ours repeated, so that a line is complete."""
    columns = ("item", "panel", "series", "x", "mean", "std", "n", "published", "source", "runs", *COST_COLUMNS)
    rows = []
    for entry in known:
        mean = fmean(entry.values) if entry.values else ""
        spread = stdev(entry.values) if len(entry.values) > 1 else ""
        for reference in entry.references or (None,):
            theirs = (reference.y, reference.source) if reference else ("", "")
            where = (item.name, entry.panel, entry.series, entry.x)
            costs = ["" if macs is None else macs for macs in map(entry.macs, ("finding", "training"))]
            rows.append((*where, mean, spread, len(entry.values), *theirs, " ".join(entry.runs), *costs))
    return Table(columns, rows)

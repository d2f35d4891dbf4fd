"""One HTML page of a study: every item with its figure, its numbers, their runs, and what is still to be run."""

import base64
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skeletal.core.extras import extra
from skeletal.core.files import write_atomically
from skeletal.core.table import Table
from skeletal.harness.output.figures import render
from skeletal.study.items import ITEMS
from skeletal.study.paper import collect
from skeletal.study.paper.item import Item, Measurement, Panel
from skeletal.study.paper.scales import SCALES, Scale
from skeletal.study.show import legend
from skeletal.study.show.draw import draw, mean_and_std, save, shown_panels
from skeletal.study.show.tables import Entry, entries, shares

_TEMPLATE = "report.html.j2"
_ROOT = Path("studies")  # where the command looks by default


@dataclass(frozen=True)
class Stated:
    """A published number beside ours."""

    text: str
    mark: str
    """the letter of its source, below the table"""


@dataclass(frozen=True)
class Number:
    """What stands in one cell of a table."""

    ours: str = ""
    """mean ± standard deviation, or one value"""
    n: int = 0
    runs: tuple[str, ...] = ()
    published: tuple[Stated, ...] = ()


@dataclass(frozen=True)
class PanelTable:
    """Numbers of one panel, rows by columns."""

    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Number]]]
    sources: dict[str, str]
    """letter to source"""
    long: bool
    """folded away until asked for"""


@dataclass(frozen=True)
class Sheet:
    """One panel of the page."""

    title: str
    picture: str
    """a data: address, or empty"""
    alt: str
    notes: str
    """what is missing in it"""
    table: PanelTable | None


@dataclass(frozen=True)
class Run:
    """A run behind the numbers."""

    name: str
    href: str
    series: str
    seed: int


@dataclass(frozen=True)
class Section:
    """One item of the page."""

    item: Item
    sheets: list[Sheet]
    state: dict[str, int]
    failures: dict[str, str]
    runs: list[Run]
    command: str
    """what fills the gaps; empty if there are none"""
    elsewhere: list[str]
    """the scales that have it, if this one has not"""
    counted: Table | None
    """a table that needs no run"""

    @property
    def total(self) -> int:
        """All its runs."""
        return sum(self.state.values())


def build(root: Path, scale: Scale, out: Path, *, items: Iterable[Item] | None = None) -> Path:
    """Write a page of what has run below `root` at a scale, and its figures as files beside it; return the page's path.

    The page needs no other file and no network: the figures are in it, too. Runs are linked by relative paths.

    Args:
        root: the folder of the study's run folders.
        scale: of `scale_named`.
        out: a folder, for `index.html`, `fig1.svg`, `fig1.png` and so on; or the page, if the name ends in .html.
        items: by default all of the paper's, in its order.

    Raises:
        ValueError: a run folder is damaged; names the file.

    """
    page = out if out.suffix == ".html" else out / "index.html"
    chosen = list(ITEMS.values() if items is None else items)
    sections = [_section(item, scale, root, page) for item in chosen]
    folders = {job.folder(root).path for item in chosen for job in item.jobs(scale)}
    page.parent.mkdir(parents=True, exist_ok=True)
    text = _page(
        scale=scale,
        root=root,
        sections=sections,
        machines=_machines(folders),
        built=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        finished=sum((path / "result.json").exists() for path in folders),
        total=len(folders),
    )
    write_atomically(page, text)
    return page


def _page(**values: Any) -> str:
    with extra("run"):
        from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("skeletal.study").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)


def _section(item: Item, scale: Scale, root: Path, page: Path) -> Section:
    points = collect.points(item, scale, root)
    cells = item.cells(scale)
    if points and _drawn(item):
        save(draw(item, points, scale), page.parent / item.name)
    known = entries(item, scale, root)
    state = collect.state(item, scale, root)
    return Section(
        item=item.at(scale),
        sheets=[_sheet(item, panel, points, known, scale) for panel in item.at(scale).panels],
        state=state,
        failures=collect.failures(item, scale, root),
        runs=_runs(points, root, page),
        command=_command(item, scale, root) if state["missing"] or state["failed"] else "",
        elsewhere=[] if cells else [name for name, other in SCALES.items() if item.cells(other)],
        counted=shares() if item.name == "table3" else None,
    )


def _drawn(item: Item) -> bool:
    return not item.name.startswith("table")


def _sheet(item: Item, panel: Panel, points: Sequence[Measurement], known: Sequence[Entry], scale: Scale) -> Sheet:
    series = ", ".join(dict.fromkeys(point.series for point in points if point.panel == panel.key))
    picture = notes = ""
    if series and _drawn(item):
        shown, expected = shown_panels(item, points, scale, [panel.key])
        notes = " ".join(legend.notes(shown, {panel.key: expected[panel.key]}, points))
        drawn = draw(item, points, scale, panels=[panel.key], notes=False)
        picture = "data:image/svg+xml;base64," + base64.b64encode(render(drawn, "svg")).decode()
    title = f"({panel.key}) {panel.title}" if panel.key and _drawn(item) else panel.title
    what = f"{item.at(scale).title}, {panel.title}"
    alt = f"{what}: {panel.y_label} against {panel.x_label}, for {series}; numbers in the table."
    return Sheet(title, picture, alt, notes, _table(panel, [entry for entry in known if entry.panel == panel.key]))


def _table(panel: Panel, known: Sequence[Entry]) -> PanelTable | None:
    """Series down, x across; layers, of which there are many, down and series across."""
    # Numbers between ours from sources other than the paper would make columns with none of ours.
    places = {entry.x for entry in known if entry.values or any(r.source.startswith("paper") for r in entry.references)}
    known = [entry for entry in known if entry.x in places or not places]
    if not known:
        return None
    sources = dict.fromkeys(reference.source for entry in known for reference in entry.references)
    letters = dict(zip(sources, "abcdefgh", strict=False))

    def number(entry: Entry) -> Number:
        stated = tuple(Stated(_text(r.y, panel), letters[r.source]) for r in entry.references)
        return Number(_mean(entry.values, panel) if entry.values else "", len(entry.values), entry.runs, stated)

    sparsity = panel.x_scale == "sparsity"
    columns = sorted({entry.x for entry in known}, reverse=sparsity)
    heads = [("dense" if x == 1 else f"{100 * (1 - x):.6g}%") if sparsity else f"{x:g}" for x in columns]
    lines: dict[str, dict[float, Number]] = {}
    for entry in known:
        lines.setdefault(entry.series, {})[entry.x] = number(entry)
    rows = [(series, [line.get(x, Number()) for x in columns]) for series, line in lines.items()]
    marks = {letter: source for source, letter in letters.items()}
    if panel.x_scale != "layers":
        return PanelTable(panel.x_label, heads, rows, marks, long=False)
    turned = [(head, [cells[i] for _, cells in rows]) for i, head in enumerate(heads)]
    return PanelTable("layer", list(lines), turned, marks, long=True)


def _mean(values: Sequence[float], panel: Panel) -> str:
    mean, std = mean_and_std(values)
    return _text(mean, panel) + ("" if std is None else f" ± {_text(std, panel)}")


def _text(value: float, panel: Panel) -> str:
    if "%" in panel.y_label:
        return f"{value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _runs(points: Sequence[Measurement], root: Path, page: Path) -> list[Run]:
    series: dict[str, dict[str, None]] = {}
    seeds = {point.run: point.seed for point in points}
    for point in points:
        series.setdefault(point.run, {})[f"{point.series} ({point.panel})" if point.panel else point.series] = None
    return [Run(run, _href(root / run, page), ", ".join(series[run]), seeds[run]) for run in sorted(series)]


def _href(folder: Path, page: Path) -> str:
    return quote(os.path.relpath(folder, page.parent).replace(os.sep, "/")) + "/"


def _command(item: Item, scale: Scale, root: Path) -> str:
    """The shell line that runs what is missing and tries again what failed, and little else."""
    cells = item.cells(scale)
    lacking = [cell for cell in cells if not all(job.folder(root).finished for job in cell.jobs)]
    words = ["skeletal", "study", "run", item.name, "--scale", scale.name]
    for option, every, wanted in (
        ("--only", {cell.panel for cell in cells}, {cell.panel for cell in lacking}),
        ("--methods", {cell.series for cell in cells}, {cell.series for cell in lacking}),
    ):
        if wanted != every:
            words += [word for name in sorted(wanted) for word in (option, name)]
    words += _changes(scale)
    words += ["--root", str(root)] if root != _ROOT else []
    return shlex.join(words)


def _changes(scale: Scale) -> list[str]:
    """The options that made this scale of the one in the table: `Scale.altered`."""
    base = SCALES.get(scale.name, scale)
    words = []
    for option, read in (("--epochs", lambda task: task.training.epochs), ("--seeds", lambda task: task.seeds)):
        here, there = ([read(t) for t in (*s.trained.values(), *s.measured.values())] for s in (scale, base))
        if here != there:
            words += [option, str(here[0])]
    return words


def _machines(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What the runs ran on: a record for each kind of machine and versions, with the number of runs and their dates."""
    found: dict[tuple, dict[str, Any]] = {}
    for folder in sorted(folders):
        try:
            told = json.loads((folder / "environment.json").read_bytes())
        except (OSError, ValueError):  # a record with gaps is better than no page
            continue
        machine = _machine(told)
        date = str(told.get("date") or "")[:10]
        record = found.setdefault(tuple(machine.items()), machine | {"runs": 0, "first": date, "last": date})
        record["runs"] += 1
        record["first"], record["last"] = min(record["first"], date), max(record["last"], date)
    return list(found.values())


def _machine(told: dict[str, Any]) -> dict[str, str]:
    versions = told.get("versions") or {}
    checkout = told.get("checkout") or {}
    commit = f"{checkout['commit'][:8]}{', changed' if checkout.get('dirty') else ''}" if checkout.get("commit") else ""
    named = [f"{name} {version}" for name, version in versions.items() if version]
    return {
        "gpu": ", ".join(gpu["name"] for gpu in told.get("gpus") or []) or "none",
        "cpu": f"{told.get('cpu') or 'unknown'}, {told.get('cores') or '?'} cores, {told.get('memory_gib') or '?'} GiB",
        "threads": str(told.get("threads") or "?"),
        "system": f"{told.get('platform') or 'unknown'}, Python {told.get('python') or '?'}",
        "versions": ", ".join(named),
        "commit": commit or "unknown",
    }

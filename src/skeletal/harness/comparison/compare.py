"""Runs side by side: one row per run, some of them, in order, as a table or a figure."""

import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from typing import Any

from skeletal.core.choices import require, same_name, spelled
from skeletal.core.table import Table
from skeletal.harness.comparison.row import COLUMNS, COSTS, Row, labels
from skeletal.harness.comparison.seeds import by_seed
from skeletal.harness.ledger import readable
from skeletal.harness.output.accuracy import plot_accuracy, rounded
from skeletal.harness.output.pareto import on_front
from skeletal.harness.output.tradeoff import Outcome, plot_tradeoff

LEGEND = "accuracy: test top-1, in percent; seconds: of training; sparsity: percent of prunable weights removed"
COST_LEGEND = "macs: multiply-adds of kept weights, forward and backward; memory: peak of the process"
_CONDITION = re.compile(r"\s*([\w-]+)\s*(<=|>=|!=|<|>|=)\s*(.*?)\s*")


def chosen(rows: Iterable[Row], conditions: Sequence[str]) -> list[Row]:
    """The rows that meet every condition, such as "method=force", "density<0.05", "epochs>=10".

    Density and sparsity are compared as shown, in four significant digits, or in as many as a condition has:
    "density=0.02" is true of what kept 0.0200007.

    Raises:
        ValueError: not a condition, or one on a name that no row has.

    """
    rows = everything = list(rows)
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if found is None or not found[3]:
            raise ValueError(f"{condition!r} is not a condition: write NAME=VALUE, with =, !=, <, <=, > or >=")
        name = _named(found[1], everything)
        rows = [row for row in rows if _meets(_nearly(name, row.get(name), found[3]), found[2], found[3], condition)]
    return rows


def _named(name: str, rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(key for row in rows for key in row)) or list(COLUMNS)
    name = spelled(name.replace("-", "_"), names)
    require("column", name, names)
    return name


def _nearly(name: str, value: Any, wanted: str) -> Any:
    """A share of weights as precisely as it is shown, or wanted: weights are whole, and keep to none exactly."""
    if name not in ("density", "sparsity") or value is None or _number(wanted) is None:
        return value
    digits = max(4, len(Decimal(wanted).as_tuple().digits))
    return float(f"{value:.{digits}g}")


def _meets(value: Any, sign: str, wanted: str, condition: str) -> bool:
    if sign in ("=", "!="):
        same = _number(value) == _number(wanted) if _number(wanted) is not None else same_name(str(value), wanted)
        return same == (sign == "=")
    limit = _number(wanted)
    if limit is None:
        raise ValueError(f"{condition!r} compares sizes, but {wanted!r} is not a number")
    compare: dict[str, Callable[[float, float], bool]] = {
        "<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__,
    }  # fmt: skip
    number = _number(value)
    return number is not None and compare[sign](number, limit)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def ordered(rows: Sequence[Row], by: str, *, reverse: bool = False) -> list[Row]:
    """Rows by a column, the smallest first, but the best accuracy; those without a value come last.

    Raises:
        ValueError: no row has such a column.

    """
    by = _named(by, rows)
    known = [row for row in rows if row.get(by) is not None]
    numbers = all(_number(row[by]) is not None for row in known)
    known.sort(key=lambda row: float(row[by]) if numbers else str(row[by]), reverse=reverse != (by == "accuracy"))
    return known + [row for row in rows if row.get(by) is None]


def table(rows: Sequence[Row]) -> Table:
    """For people: columns that differ, numbers rounded; "-" is what a run has not reached yet."""
    left_out = {"density", "dense_macs", *_same(rows)} | ({*COSTS} if not _costs_known(rows) else set())
    columns = [name for name in COLUMNS if name not in left_out]
    left = next((i for i, name in enumerate(columns) if name in ("sparsity", "seed")), 1)
    named = [row | {"method": label} for row, label in zip(rows, labels(rows), strict=True)]
    shown = [[_shown(row, name) for name in columns] for row in named]
    return Table(columns, shown, left=left)


def legend(rows: Sequence[Row]) -> str:
    """What the columns of `table` mean."""
    return f"{LEGEND}\n{COST_LEGEND}" if _costs_known(rows) else LEGEND


def _costs_known(rows: Sequence[Row]) -> bool:
    return any(row["finding_macs"] is not None or row["training_macs"] is not None for row in rows)


def heading(rows: Sequence[Row]) -> str:
    """How many runs, and what they have in common."""
    common = _same(rows)
    of = [f"of {common['model']}"] if "model" in common else []
    of += [f"on {common['data']}"] if "data" in common else []
    return " ".join([f"{len(rows)} run{'s' if len(rows) != 1 else ''}", *of])


def plain(rows: Sequence[Row]) -> Table:
    """For other programs: every column, numbers as they are."""
    return Table(COLUMNS, [["" if row[name] is None else row[name] for name in COLUMNS] for row in rows])


def _same(rows: Sequence[Row]) -> dict[str, Any]:
    return {name: rows[0][name] for name in ("model", "data") if len({row[name] for row in rows}) == 1}


def _shown(row: Row, name: str) -> str:
    value = row[name]
    if value is None:
        return "-"
    if name == "epochs" and value != row["epochs_asked"] and row["epochs_asked"] is not None:
        return f"{value} of {row['epochs_asked']}"
    if name in COSTS:
        return f"{readable(value)}B" if name == "memory" else readable(value)
    return {"sparsity": "{:.4g}", "accuracy": "{:.2f}", "seconds": "{:.1f}"}.get(name, "{}").format(value)


def outcomes(rows: Sequence[Row]) -> list[tuple[Outcome, list[Row]]]:
    """Finished runs that differ in their seeds alone, with means over seeds: each counts once, however often run."""
    finished = [row for row in rows if row["accuracy"] is not None]
    groups: dict[Any, list[Row]] = {}
    for row, label in zip(finished, _with_epochs(finished, labels(finished)), strict=True):
        # As asked: within a budget, each seed may end after another number of epochs.
        asked = row["density_asked"], row["epochs_asked"] or row["epochs"]
        groups.setdefault((row["model"], row["data"], label, *asked), []).append(row)
    return [(_mean(label, group), group) for (_, _, label, *_), group in groups.items()]


def _with_epochs(rows: Sequence[Row], named: Sequence[str]) -> list[str]:
    """Labels that tell the number of epochs, too, where runs of one label and density were to train for several.

    Where densities differ in it, as they do within a budget, one label stays one curve.
    """
    curves = [(row["model"], row["data"], label) for row, label in zip(rows, named, strict=True)]
    lengths: dict[Any, set[Any]] = {}
    for row, curve in zip(rows, curves, strict=True):
        lengths.setdefault((*curve, rounded(row["density"])), set()).add(row["epochs_asked"])
    several = {tuple(curve) for (*curve, _), epochs in lengths.items() if len(epochs) > 1}
    return [
        f"{label}, epochs={row['epochs_asked'] or row['epochs']}" if curve in several else label
        for row, label, curve in zip(rows, named, curves, strict=True)
    ]


def _mean(label: str, group: Sequence[Row]) -> Outcome:
    macs = None if any(row["total_macs"] is None for row in group) else fmean(_by_seed(group, "total_macs"))
    density, accuracy = (fmean(_by_seed(group, name)) for name in ("density", "accuracy"))
    return Outcome(label, density, accuracy, macs)


def _by_seed(group: Sequence[Row], name: str) -> list[float]:
    """A column of runs that differ in their seeds alone, one number for each seed."""
    return by_seed(((row["seed"], row.get("mask_seed")), row[name]) for row in group)


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The runs on the front of accuracy against total cost: of their network and data, nothing is better and as cheap.

    Runs that differ in their seeds alone are one point, by their means, so that no lucky seed makes a front.

    Raises:
        ValueError: no run has finished and records its cost.

    """
    fronts: dict[Any, list[tuple[Outcome, list[Row]]]] = {}
    for outcome, group in outcomes(rows):
        if outcome.macs is not None:
            fronts.setdefault((group[0]["model"], group[0]["data"]), []).append((outcome, group))
    if not fronts:
        raise ValueError("none of these runs records what it cost, as runs do since version 0.2: run them again")
    found = []
    for points in fronts.values():
        best = on_front([(outcome.macs or 0.0, outcome.accuracy) for outcome, _ in points])
        found += [row for (_, group), good in zip(points, best, strict=True) if good for row in group]
    return [row for row in rows if any(row is other for other in found)]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against sparsity, one curve per method, the mean over seeds with its deviation; and against total cost.

    The second is drawn if runs record what they cost. Rings mark what no other point beats.

    Raises:
        ValueError: no run has finished, or they are of several networks or data sets.

    """
    finished = [row for row in rows if row["accuracy"] is not None]
    if not finished:
        raise ValueError("there is nothing to draw: none of these runs has finished training")
    common = _same(finished)
    if len(common) < 2:
        names = sorted({f"{row['model']} on {row['data']}" for row in finished})
        raise ValueError(f"a figure is of one network and data set; name one with --filter: {', '.join(names)}")
    title = f"{common['model']} on {common['data']}, pruned before training"
    means = outcomes(finished)
    results = [
        {"method": mean.method, "density": mean.density, "test": {"top1": accuracy}}
        for mean, group in means
        for accuracy in _by_seed(group, "accuracy")
    ]
    known = [outcome for outcome, _ in means]
    if any(outcome.macs is not None for outcome in known):
        return plot_tradeoff(results, known, path, title)
    plot_accuracy(results, path, title)

"""Runs side by side: one row per run, some of them, in order, as a table or a figure."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from skeletal.core.choices import require, same_name, spelled
from skeletal.core.masks.mask import Mask
from skeletal.core.table import Table
from skeletal.harness.output.accuracy import plot_accuracy
from skeletal.harness.store.folders import MASK, RunFolder

Row = dict[str, Any]
COLUMNS = ("model", "data", "method", "density", "sparsity", "seed", "epochs", "accuracy", "seconds", "folder")
LEGEND = "accuracy: test top-1, in percent; seconds: of training; sparsity: percent of prunable weights removed"
_CONDITION = re.compile(r"\s*([\w-]+)\s*(<=|>=|!=|<|>|=)\s*(.*?)\s*")


def row_of(folder: RunFolder) -> Row:
    """What is known of a run: `COLUMNS`, then its settings by name. What it has not reached yet is None.

    Raises:
        ValueError: a file of it is damaged.

    """
    config = folder.config
    result = folder.result() if folder.finished else {}
    method, density = result.get("method", config.get("method")), result.get("density", config.get("density"))
    if density is None and method != "dense" and (folder.path / MASK).exists():  # trained with a mask from a file
        mask = Mask.load(folder.path / MASK)
        method, density = mask.metadata.get("method", "mask"), mask.density
    density = 1.0 if method == "dense" else density
    row = {
        "model": config.get("model"),
        "data": result.get("data", config.get("data")),
        "method": method,
        "density": density,
        "sparsity": None if density is None else 100 * (1 - density),
        "seed": config.get("seed"),
        "epochs": result.get("epochs", len(folder.metrics())),
        "accuracy": result.get("test", {}).get("top1"),
        "seconds": result.get("seconds"),
        "folder": str(folder.path),
    }
    settings = {name: value for name, value in config.items() if name not in row}
    return row | {"epochs_asked": config.get("epochs")} | settings


def chosen(rows: Iterable[Row], conditions: Sequence[str]) -> list[Row]:
    """The rows that meet every condition, such as "method=force", "density<0.05", "epochs>=10".

    Raises:
        ValueError: not a condition, or one on a name that no row has.

    """
    rows = list(rows)
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if found is None or not found[3]:
            raise ValueError(f"{condition!r} is not a condition: write NAME=VALUE, with =, !=, <, <=, > or >=")
        name = _named(found[1], rows)
        rows = [row for row in rows if _meets(row.get(name), found[2], found[3], condition)]
    return rows


def _named(name: str, rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(key for row in rows for key in row)) or list(COLUMNS)
    name = spelled(name.replace("-", "_"), names)
    require("column", name, names)
    return name


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
    columns = [name for name in COLUMNS if name not in _same(rows) and name != "density"]
    left = next((i for i, name in enumerate(columns) if name in ("sparsity", "seed")), 1)
    return Table(columns, [[_shown(row, name) for name in columns] for row in rows], left=left)


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
    return {"sparsity": "{:.4g}", "accuracy": "{:.2f}", "seconds": "{:.1f}"}.get(name, "{}").format(value)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against sparsity, one curve per method, the mean over seeds with its deviation.

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
    results = [
        {"method": row["method"], "density": row["density"], "test": {"top1": row["accuracy"]}} for row in finished
    ]
    plot_accuracy(results, path, f"{common['model']} on {common['data']}, pruned before training")

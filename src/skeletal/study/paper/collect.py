"""From run folders to points: figures and tables are drawn from what `result.json` says, and nothing else."""

import math
import warnings
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from skeletal.harness.ledger import Ledger
from skeletal.harness.store.folders import RunFolder, read_json
from skeletal.study.paper.item import Item, Measurement
from skeletal.study.paper.jobs import Job
from skeletal.study.paper.scales import Scale

STATES = ("finished", "running", "failed", "missing")
ERROR = "error.json"


def points(item: Item, scale: Scale, root: Path) -> list[Measurement]:
    """Return a point for each number that finished runs below `root` have measured.

    Numbers to be divided by a baseline of 0 are left out, as are those that are not finite.

    Warns:
        UserWarning: the runs were done on several data sets of one name.

    Raises:
        ValueError: a run's `config.json` or `result.json` is damaged.

    """

    @cache
    def look(job: Job) -> tuple[str, dict[str, Any], str | None] | None:
        folder = job.folder(root)
        return (folder.path.name, folder.result(), folder.fingerprint.get("data")) if folder.finished else None

    found, copies = [], defaultdict[str, dict[str, str]](dict)
    for cell in item.cells(scale):
        results = [look(job) for job in cell.jobs]
        if None in results:
            continue
        for job, (run, _, data) in zip(cell.jobs, results, strict=True):  # type: ignore[not-iterable]
            if data is not None:
                copies[job.setup.data][data.split()[0]] = run
        run, result, _ = results[-1]  # type: ignore[not-iterable]
        numbers = cell.read(result)
        if cell.baseline is not None:
            divisors = [y for _, y in cell.read(results[0][1])]  # type: ignore[unsupported-operation]
            numbers = [(x, y / d) for (x, y), d in zip(numbers, divisors, strict=True) if d]
        seed, cost = cell.job.setup.seed, Ledger.read(result.get("cost"))
        found += [Measurement(cell.panel, cell.series, x, y, seed, run, cost) for x, y in numbers if math.isfinite(y)]
    for data, runs in copies.items():
        if len(runs) > 1:
            warnings.warn(
                f"{item.name}: runs on {data} were done on {len(runs)} different data sets of that name, such as"
                f" {' and '.join(list(runs.values())[:2])}: numbers of all are shown together", stacklevel=2,
            )  # fmt: skip
    return found


def state_of(folder: RunFolder) -> str:
    """Return one of `STATES`."""
    if folder.finished:
        return "finished"
    if folder.running:
        return "running"
    return "failed" if (folder.path / ERROR).exists() else "missing"


def state(item: Item, scale: Scale, root: Path) -> dict[str, int]:
    """Return how many of the item's runs are finished, running, failed and missing (an interrupted one is missing)."""
    counted = Counter(state_of(job.folder(root)) for job in item.jobs(scale))
    return {name: counted[name] for name in STATES}


def error_of(folder: RunFolder) -> str | None:
    """Return what went wrong with a failed run; `None` if it has not failed."""
    file = folder.path / ERROR
    if folder.finished or not file.exists():
        return None
    try:
        return str(read_json(file)["message"])
    except (ValueError, KeyError):
        return f"nobody knows why: {file} is damaged"


def failures(item: Item, scale: Scale, root: Path) -> dict[str, str]:
    """Return what went wrong with each failed run, by the name of its folder."""
    folders = (job.folder(root) for job in item.jobs(scale))
    return {folder.path.name: error for folder in folders if (error := error_of(folder)) is not None}

"""Runs under an equal budget: how far each of them comes with so many multiply-adds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skeletal.harness.comparison.row import Row
from skeletal.harness.ledger import Ledger
from skeletal.harness.store.folders import RunFolder


def at_most(rows: Iterable[Row], macs: float) -> list[Row]:
    """Each run as it was when it had cost at most so many multiply-adds, of kept weights, mask finding included.

    A run that cost no more is taken as it ended. Of another, it is the last epoch within the budget after which it was
    tested (see `--test-every`): not the best one, which would choose by test accuracy. Runs that have not finished,
    record no cost, or were not tested within the budget are left out.
    """
    found = ((row, row["total_macs"]) for row in rows)
    kept = (row if total <= macs else _earlier(row, macs) for row, total in found if total is not None)
    return [row for row in kept if row is not None]


def _earlier(row: Row, macs: float) -> Row | None:
    folder = RunFolder.at(Path(row["folder"]))
    finding = Ledger.read(folder.result().get("cost")).finding
    assert finding is not None, "a run whose total is known has its parts"
    epochs = folder.metrics()
    within = [epoch for epoch in epochs if _tested(epoch) and finding.macs_kept + epoch["macs_kept"] <= macs]
    if not within:
        return None
    last = within[-1]
    density = last.get("density", row["density"])
    return row | {
        "density": density,
        "sparsity": 100 * (1 - density),
        "epochs": last["epoch"] + 1,
        "accuracy": last["test_top1"],
        "seconds": sum(epoch["seconds"] for epoch in epochs[: last["epoch"] + 1]),
        "training_macs": last["macs_kept"],
        "total_macs": finding.macs_kept + last["macs_kept"],
        "dense_macs": finding.macs_dense + last["macs_dense"],
    }


def _tested(epoch: dict[str, Any]) -> bool:
    return epoch.get("test_top1") is not None and epoch.get("macs_kept") is not None

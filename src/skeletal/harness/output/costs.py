"""A run's ledger, for people."""

from dataclasses import fields

from skeletal.core.progress import duration
from skeletal.core.table import Table
from skeletal.harness.ledger import Cost, Ledger, readable

COLUMNS = ("cost of", "examples", "forward", "backward", "if dense", "time", "memory")
NOTE = "forward, backward: multiply-adds of kept weights; if dense: of all weights; memory: peak of the process"


def cost_table(ledger: Ledger) -> Table:
    """One line for each part of a run whose cost is known; see `Cost` for what the columns mean."""
    parts = [(field.name, getattr(ledger, field.name)) for field in fields(ledger)]
    return Table(COLUMNS, [_line(name, cost) for name, cost in parts if cost is not None], notes=(NOTE,))


def _line(name: str, cost: Cost) -> tuple[str, ...]:
    macs = map(readable, (cost.forward_kept, cost.backward_kept, cost.macs_dense))
    return name, f"{cost.examples:,}", *macs, duration(cost.seconds), f"{readable(cost.peak_memory)}B"

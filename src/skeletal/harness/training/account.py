"""Enters into a run's ledger what its steps and evaluations cost, as they are taken."""

from dataclasses import replace

from skeletal.core.diagnosis.macs import Uses
from skeletal.core.model.distributed import everyone
from skeletal.core.model.passes import Passes
from skeletal.harness.ledger import Cost, Ledger
from skeletal.harness.meter import Meter
from skeletal.harness.stopwatch import Stopwatch
from skeletal.harness.training.checkpoint import RunState


class Account:
    """Keeps the ledger of a run, which its checkpoint holds; counts are of all ranks together.

    Args:
        run: at the step it begins or resumes with.
        uses: of its dense network's weights by an example.
        stopwatch: started with the training.

    """

    def __init__(self, run: RunState, uses: Uses, stopwatch: Stopwatch) -> None:
        self._run, self._stopwatch = run, stopwatch
        self._mask, self._meter = run.mask, Meter(uses, run.mask)
        self._look_ahead()

    def step(self, examples: int) -> None:
        """A step has been taken, on so many examples."""
        self._enter(training=self._meter.price(Passes("gradient", examples, everywhere=self._everywhere)))
        self._look_ahead()

    def _look_ahead(self) -> None:
        """What the next step does: its mask may be another one, and it may ask for gradients of pruned weights."""
        run = self._run
        if run.mask is not self._mask:
            self._mask = run.mask
            self._meter.turn_to(run.mask)
        self._everywhere = run.moving is not None and run.moving.asks_for_gradients

    def trained(self, seconds: float) -> None:
        """Steps have taken that long."""
        self._enter(training=replace(self._stopwatch.read(), seconds=seconds))

    def evaluated(self, examples: int, seconds: float) -> None:
        """The network has been scored on so many examples, which took that long."""
        counts = self._meter.price(Passes("forward", examples))
        self._enter(evaluation=counts + replace(self._stopwatch.read(), seconds=seconds))

    def _enter(self, training: Cost | None = None, evaluation: Cost | None = None) -> None:
        ledger = self._run.ledger
        if ledger.training is not None and training is not None:
            ledger = replace(ledger, training=ledger.training + training)
        if ledger.evaluation is not None and evaluation is not None:
            ledger = replace(ledger, evaluation=ledger.evaluation + evaluation)
        self._run.ledger = ledger

    def close(self) -> Ledger:
        """The finished ledger: counts, which are the same on all ranks, with the longest time and the most memory."""
        ledgers = everyone(self._run.ledger)
        parts = [_longest([getattr(ledger, part) for ledger in ledgers]) for part in ("training", "evaluation")]
        self._run.ledger = Ledger(None, *parts)
        return self._run.ledger


def _longest(costs: list[Cost | None]) -> Cost | None:
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    seconds, memory = max(cost.seconds for cost in known), max(cost.peak_memory for cost in known)
    return replace(known[0], seconds=seconds, peak_memory=memory)

"""How a mask is to be found: the arguments of `prune`, checked, and the same on every rank."""

from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

from torch import nn

from skeletal.core.choices import at_least, require
from skeletal.core.model.batches import Cycle, Loss
from skeletal.core.model.distributed import agree
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.precision import PRECISIONS, prefers_channels_last
from skeletal.core.patterns.pattern import Pattern
from skeletal.core.pruning.methods import Method, row_for
from skeletal.core.pruning.schedules import SCHEDULES, Schedule, visit
from skeletal.core.pruning.scores import Score


def density_of(density: float | None, sparsity: float | None) -> float:
    """The fraction of weights that is kept.

    Raises:
        ValueError: neither is given, or both.

    """
    if (density is None) == (sparsity is None):
        given = "neither is given" if density is None else f"not density={density} and sparsity={sparsity}"
        raise ValueError(f"give density, the fraction kept, or sparsity, the fraction pruned: {given}")
    if density is not None:
        return float(density)
    # In decimals: 1 - 0.98 is 0.02 to the person who writes it.
    return float(1 - Decimal(str(float(sparsity or 0))))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `prune` that are neither model, data nor callback; see there.

    Raises:
        ValueError: one of them is out of range, or two do not go together.

    """

    density: float
    method: str
    steps: int | None
    batches_per_step: int
    schedule: str | Schedule
    loss: Loss | None
    score: Score | None
    pattern: Pattern | None
    bn_mode: str
    average: str
    precision: str
    engine: type[Derivatives]
    micro_batch: int | None
    recompute: bool
    on_collapse: str
    seed: int

    def __post_init__(self) -> None:
        row = self.row
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}; it is the fraction of weights kept, above 0 and at most 1")
        if not callable(self.schedule):
            require("schedule", self.schedule, tuple(SCHEDULES))
        require("bn_mode", self.bn_mode, ("train", "eval"))
        require("average", self.average, ("signed", "absolute"))
        require("precision", self.precision, PRECISIONS)
        require("on_collapse", self.on_collapse, ("raise", "keep"))
        if not (row.nested or self.engine.everywhere):
            raise ValueError(
                f"{self.method!r} scores pruned weights, too, whose gradients a skeleton does not have:"
                " use engine='dense'"
            )
        for name, number in {"batches_per_step": self.batches_per_step, "micro_batch": self.micro_batch}.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; it has to be at least 1")

    @cached_property
    def row(self) -> Method:
        """The method's row of the table, with the score and the number of steps asked for."""
        return row_for(self.method, self.score, self.steps)

    def counts(self, total: int) -> list[int]:
        """How many of `total` weights each step keeps.

        Raises:
            ValueError: the density keeps none, or the schedule breaks its promise; see `visit`.

        """
        final = round(self.density * total)
        if final == 0:
            raise ValueError(
                f"density {self.density} keeps none of {total:,} prunable weights: {at_least(1 / total)} keeps one"
            )
        schedule = self.schedule if callable(self.schedule) else SCHEDULES[self.schedule]
        return visit(schedule, total, final, self.row.steps)

    def derivatives(self, model: nn.Module, batches: Cycle) -> Derivatives:
        """What takes the loss's derivatives at every step."""
        return self.engine(
            model,
            batches,
            self.batches_per_step,
            self.loss,
            self.bn_mode,
            self.average,
            precision=self.precision,
            channels_last=prefers_channels_last(model, self.precision),
            micro_batch=self.micro_batch,
            recompute=self.recompute,
        )

    def agree(self, model: nn.Module, counts: list[int], prunable: list[str]) -> None:
        """Make sure that all ranks were called with the same settings and the same model.

        Raises:
            ValueError: on every rank, naming what differs.

        """
        names = "method batches_per_step bn_mode average precision on_collapse seed micro_batch recompute"
        ours = {name: getattr(self, name) for name in names.split()}
        ours |= {"counts": counts, "prunable": prunable, "engine": self.engine.name}
        ours["pattern"] = self.pattern and self.pattern.name
        agree(ours, "call prune with the same arguments on every rank")
        agree(
            dict(model.named_parameters()),
            "create the model from the same seed on every rank, or broadcast it from one, as DDP does",
        )

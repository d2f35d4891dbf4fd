"""What a run cost: the record that every run leaves in its `result.json`, under `cost`, and its sums."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from skeletal.core.model.distributed import everyone


@dataclass(frozen=True)
class Cost:
    """What a piece of work cost, all processes together; costs of several pieces are added with `+`.

    Multiply-adds are those of all layers that a mask can cover: convolutions, linear layers, attention projections. A
    backward pass takes as many as the forward pass for the gradient with respect to the weights, and as many again for
    the one with respect to the inputs, which the first layer does without: so it counts as two forward passes, as in
    RigL (Evci et al. 2020, appendix on FLOPs). See `Meter` for what is counted.
    """

    examples: int = 0
    """of the data set, each as often as it was drawn"""
    forward_dense: int = 0
    """multiply-adds of forward passes if no weight were pruned"""
    forward_kept: int = 0
    """those with weights that are kept"""
    backward_dense: int = 0
    backward_kept: int = 0
    seconds: float = 0.0
    """wall clock"""
    peak_memory: int = 0
    """bytes that a process held at most: resident on a CPU, allocated by torch on a GPU; the largest of all processes,
    and of all pieces of work"""

    def __add__(self, other: "Cost") -> "Cost":
        return self._merged(other, seconds=self.seconds + other.seconds)

    def beside(self, other: "Cost") -> "Cost":
        """The cost of two pieces of work that were done at the same time."""
        return self._merged(other, seconds=max(self.seconds, other.seconds))

    def _merged(self, other: "Cost", seconds: float) -> "Cost":
        sums = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        return Cost(**sums, seconds=seconds, peak_memory=max(self.peak_memory, other.peak_memory))

    def times(self, number: int) -> "Cost":
        """The counts of `number` such pieces of work."""
        return Cost(**{name: number * getattr(self, name) for name in COUNTS})

    @property
    def macs_dense(self) -> int:
        """Multiply-adds, forward and backward, if no weight were pruned."""
        return self.forward_dense + self.backward_dense

    @property
    def macs_kept(self) -> int:
        """Multiply-adds, forward and backward, with weights that are kept."""
        return self.forward_kept + self.backward_kept

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}

    @classmethod
    def read(cls, record: Any) -> "Cost | None":
        """The cost in a record; None where there is none, as in runs of earlier versions."""
        if not isinstance(record, Mapping):
            return None
        return cls(**{field.name: record.get(field.name) or 0 for field in fields(cls)})


COUNTS = ("examples", "forward_dense", "forward_kept", "backward_dense", "backward_kept")


_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def readable(number: float) -> str:
    """A large number for people, in three digits: 1.23 T."""
    power = 0
    while number >= 999.5 and power < len(_PREFIXES) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {_PREFIXES[power]}"


def of_all_ranks(cost: Cost) -> Cost:
    """The cost of what every rank did its part of, at the same time."""
    first, *others = everyone(cost)
    for other in others:
        first = first.beside(other)
    return first


@dataclass(frozen=True)
class Ledger:
    """The costs of a run; None is what is not known, as in runs of earlier versions."""

    finding: Cost | None = None
    """the mask: scoring, or the trainings before the last one"""
    training: Cost | None = None
    evaluation: Cost | None = None
    """on validation and test examples"""

    @property
    def total(self) -> Cost | None:
        """Of finding the mask and training: what it takes to get the network. Evaluation comes on top."""
        if self.finding is None or self.training is None:
            return None
        return self.finding + self.training

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: None if cost is None else cost.record() for name, cost in parts.items()}

    @classmethod
    def read(cls, record: Any) -> "Ledger":
        """The ledger in a record; an empty one where there is none."""
        record = record if isinstance(record, Mapping) else {}
        return cls(**{field.name: Cost.read(record.get(field.name)) for field in fields(cls)})

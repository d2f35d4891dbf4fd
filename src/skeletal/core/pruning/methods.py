"""The table of methods: each is a setting of Algorithm 1."""

from dataclasses import dataclass, replace

from skeletal.core.choices import named
from skeletal.core.pruning import scores


@dataclass(frozen=True)
class Method:
    """A row of the table: a method is a score, how often it is computed, and whether pruned weights may return."""

    score: scores.Score
    steps: int
    """the default number of steps T"""
    nested: bool = True
    """once pruned, stays pruned (Eq. 7)"""
    one_shot: bool = False
    """one step by definition"""
    needs_data: bool = True
    looks_at_data: bool = True
    """scores depend on the numbers in the batches, not only on their shapes"""
    by_count: bool = False
    """scores depend on how many weights are to be kept, so that a lower density's say nothing of a higher one"""


METHODS: dict[str, Method] = {
    "random": Method(scores.noise, steps=1, one_shot=True, needs_data=False, looks_at_data=False),
    "magnitude": Method(scores.magnitude, steps=1, one_shot=True, needs_data=False, looks_at_data=False),
    "random-uniform": Method(
        scores.uniform_noise, steps=1, one_shot=True, needs_data=False, looks_at_data=False, by_count=True
    ),
    "random-erk": Method(
        scores.erk_noise, steps=1, one_shot=True, needs_data=False, looks_at_data=False, by_count=True
    ),
    "snip": Method(scores.connection_sensitivity, steps=1, one_shot=True),
    "grasp": Method(scores.gradient_preservation, steps=1, one_shot=True),
    "force": Method(scores.connection_sensitivity, steps=60),
    "force-floor": Method(scores.floored_sensitivity, steps=60, by_count=True),
    "force-regrow": Method(scores.regrowing_sensitivity, steps=60, nested=False),
    "grasp-it": Method(scores.gradient_norm, steps=60),
    "grasp-iterative": Method(scores.gradient_preservation, steps=60),
    "synflow": Method(scores.flow, steps=100, looks_at_data=False),
    "phew": Method(scores.heavy_walks, steps=1, one_shot=True, looks_at_data=False, by_count=True),
    "npb": Method(scores.balance, steps=1, one_shot=True, looks_at_data=False, by_count=True),
    "prospr": Method(scores.prospect, steps=1, one_shot=True),
    "ntk-sap": Method(scores.kernel_spectrum, steps=100, looks_at_data=False),
    "px": Method(scores.kernel_bound, steps=100),
}


def row_for(method: str, score: scores.Score | None = None, steps: int | None = None) -> Method:
    """A method's row, with the caller's score and number of steps where they are given.

    Raises:
        ValueError: no such method, fewer than one step, or several steps of a method that has one by definition.

    """
    method = named("method", method, METHODS)
    row = METHODS[method]
    if score is not None:
        row = replace(row, score=score, one_shot=False, looks_at_data=True)
    if steps is None:
        return row
    if steps < 1:
        raise ValueError(f"steps is {steps}; it has to be at least 1")
    if row.one_shot and steps != 1:
        iterated = {"snip": "force", "grasp": "grasp-iterative"}.get(method)
        hint = f" ({method} in several steps is method={iterated!r})" if iterated else ""
        raise ValueError(f"{method!r} prunes in one step, not {steps}{hint}")
    return replace(row, steps=steps)

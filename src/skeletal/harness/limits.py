"""Which numbers make sense as settings; all others are refused before anything is loaded."""

import math
from dataclasses import fields
from typing import Any

_AT_LEAST = {
    "seed": 0,
    "workers": 0,
    "image_size": 1,
    "steps": 1,
    "batches_per_step": 1,
    "prune_batch_size": 1,
    "micro_batch": 1,
    "best_of": 1,
    "epochs": 1,
    "batch_size": 1,
    "test_every": 0,
    "update_every": 0,
    "rewind_epochs": 0,
    "lr": 0,
    "weight_decay": 0,
}
_MOST_SEED = 2**63 - 1  # what torch's generators and files hold


def check(record: Any) -> None:
    """Check the numbers of a `Setup`, `Pruning` or `Training`; `None` is skipped.

    Raises:
        ValueError: a number is out of its range, or not finite; names it and the range.

    """
    settings = {field.name: getattr(record, field.name) for field in fields(record)}
    for name, least in _AT_LEAST.items():
        value = settings.get(name)
        if value is not None and not least <= value < math.inf:  # a NaN is not at least anything
            finite = "" if isinstance(value, int) else ", and finite"
            raise ValueError(f"{name} is {value}; it has to be at least {least}{finite}")
    if (seed := settings.get("seed")) is not None and seed > _MOST_SEED:
        raise ValueError(f"seed is {seed}; it has to be at most 2^63-1")
    if (density := settings.get("density")) is not None and not 0 < density <= 1:
        raise ValueError(f"density is {density}; it is the fraction kept, above 0 and at most 1")
    for name in ("update_fraction", "update_end", "update_density"):
        if (share := settings.get(name)) is not None and not 0 < share <= 1:
            raise ValueError(f"{name} is {share}; it is a fraction, above 0 and at most 1")
    if (sparsity := settings.get("sparsity")) is not None and not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it is the fraction pruned, at least 0 and below 1")
    if (validation := settings.get("validation")) is not None and not 0 <= validation < 1:
        raise ValueError(f"validation is {validation}; it is the fraction held out, at least 0 and below 1")
    if (momentum := settings.get("momentum")) is not None and not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; it has to be at least 0 and below 1")
    for milestone in settings.get("milestones") or ():
        if not 0 <= milestone <= 1:
            raise ValueError(
                f"milestones hold {milestone:g}; they are fractions of the training, from 0 to 1:"
                " epoch 150 of 300 is 0.5"
            )

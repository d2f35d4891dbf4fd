"""What to say about a mask that was found: its metadata, and a warning if it can learn nothing."""

from typing import Any

import torch
from torch import nn

from skeletal.core.errors import CollapseWarning, warn_caller
from skeletal.core.launcher import launched
from skeletal.core.masks.mask import Mask
from skeletal.core.model.distributed import ranks
from skeletal.core.model.weights import count_biases, left_out
from skeletal.core.patterns.names import CHANNELS, block
from skeletal.core.pruning.settings import Settings
from skeletal.core.version import __version__


def describe(settings: Settings, steps: int, model: nn.Module, weights: dict[str, nn.Parameter]) -> dict[str, Any]:
    """How a mask was found, and of which model: plain data."""
    schedule, loss = settings.schedule, settings.loss
    return {
        "method": settings.method,
        "score": getattr(settings.row.score, "__name__", "custom"),
        "density": settings.density,
        "pattern": settings.pattern and settings.pattern.name,
        "steps": steps,
        "schedule": schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "custom"),
        "batches_per_step": settings.batches_per_step,
        "loss": "default" if loss is None else getattr(loss, "__name__", type(loss).__name__),
        "bn_mode": settings.bn_mode,
        "average": settings.average,
        "precision": settings.precision,
        "engine": settings.engine.name,
        "micro_batch": settings.micro_batch,
        "recompute": settings.recompute,
        "ranks": ranks(),
        "seed": settings.seed,
        "model": type(model).__name__,
        "biases": count_biases(model, weights),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "left_out": left_out(model, weights),
        "versions": {"skeletal": __version__, "torch": str(torch.__version__)},
    }


def warn_if_collapsed(mask: Mask, why_unknown: str) -> None:
    """Warn if no path is left, if that is unknown and layers are empty, or if kept weights carry no signal.

    Args:
        mask: as `prune` made it.
        why_unknown: why it is unknown whether there is a path, if it is.

    Warns:
        CollapseWarning: at the line that called `prune`.

    """
    made = f"at density {mask.density:.4g} with {mask.metadata['method']!r}"
    empty = ", ".join(mask.empty_layers)
    if mask.metadata["connected"] is False:
        message = (
            f"no path leads from input to output {made}: this skeleton cannot learn."
            f" Empty layers: {empty or 'none, but no path is left through them'}"
        )
    elif mask.metadata["connected"] is None and empty:
        message = f"layers are empty {made}: {empty}. Whether a path is left is not known ({why_unknown})"
    elif (filled := mask.metadata["filled"]) and filled[-1]["step"] == mask.metadata["steps"]:
        message = (
            f"{filled[-1]['weights']:,} of the {mask.kept:,} weights kept {made} carry no signal: filled by position"
        )
    else:
        return
    warn_caller(message, CollapseWarning)


def warn_if_alone() -> None:
    """Warn of processes that were launched together and do not know of each other yet: each finds its own mask."""
    if launched() > 1 and ranks() == 1:
        warn_caller(
            f"this is one of {launched()} processes, but there is no process group yet, so it prunes by itself, and"
            " with other batches or weights others find other masks: call torch.distributed.init_process_group before",
            UserWarning,
        )


def warn_if_layers_differ(settings: Settings) -> None:
    """Warn if a method that gives each layer a number of weights meets a pattern that chooses groups over all layers.

    Warns:
        UserWarning: at the line that called `prune`.

    """
    if settings.pattern is None or not settings.row.by_count:
        return
    if (name := settings.pattern.name) == CHANNELS or block(name):
        warn_caller(
            f"{settings.method} gives each layer its number of weights by the scores of single ones; the pattern {name}"
            " chooses groups by their mean score, so layers keep other numbers: look at them, or take another method",
            UserWarning,
        )

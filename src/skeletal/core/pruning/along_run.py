"""Prune with FORCE, and measure on the way how far each step's mask is from locally optimal (paper, appendix C)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from skeletal.core.diagnosis.optimality import LocalOptimality, local_optimality, require_fixed
from skeletal.core.masks.mask import Mask
from skeletal.core.model.batches import Loss
from skeletal.core.pruning.algorithm import Step
from skeletal.core.pruning.prune import prune


def optimality_along_run(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    density: float,
    steps: int,
    swaps: int = 1,
    samples: int = 32,
    last_only: bool = False,
    loss: Loss | None = None,
    bn_mode: Literal["train", "eval"] = "train",
    seed: int = 0,
    **options: Any,
) -> tuple[Mask, list[LocalOptimality]]:
    """Prune with FORCE, every step on the same batches, and measure each step's mask against the one before.

    Args:
        model: at its initialization; left as found.
        batches: a list; every step of `prune` averages over all of it, so that it maximizes what is measured.
        density: of the last mask.
        steps: T; 1 is SNIP.
        swaps: p; fewer at steps that prune or keep fewer weights than that.
        samples: of each measurement.
        last_only: measure only the last step.
        loss: of pruning and measuring, as are `bn_mode` and `seed`; see `prune`.
        bn_mode: "train" or "eval".
        seed: draws the swaps, too.
        options: more arguments for `prune`.

    Returns:
        The mask, and one measurement per step, in order; none for a step that prunes nothing.

    Raises:
        TypeError: `batches` is no list.
        ValueError: it is empty; and as `prune`.

    """
    require_fixed(batches)
    found: list[LocalOptimality] = []
    previous: Mapping[str, Tensor] | None = None
    before = None

    def measure(step: Step) -> None:
        nonlocal previous, before
        pruned = (before or sum(keep.numel() for keep in step.mask.values())) - step.kept
        room = min(swaps, step.kept, pruned)
        if room and (step.step == step.steps or not last_only):
            measured = local_optimality(
                model,
                batches,
                step.mask,
                previous,
                swaps=room,
                samples=samples,
                loss=loss,
                bn_mode=bn_mode,
                seed=seed,
            )
            found.append(measured)
        previous, before = step.mask, step.kept

    mask = prune(
        model,
        batches,
        density=density,
        steps=steps,
        batches_per_step=len(batches),
        loss=loss,
        bn_mode=bn_mode,
        seed=seed,
        on_step=measure,
        **options,
    )
    return mask, found

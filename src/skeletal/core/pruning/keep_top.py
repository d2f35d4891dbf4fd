"""From scores to the next mask: the best of all weights, or of those that are left."""

import torch

from skeletal.core.errors import CollapsedError
from skeletal.core.masks.selection import gather, scatter, top
from skeletal.core.model.tensors import Tensors, flatten, unflatten
from skeletal.core.patterns.pattern import Patterned


def keep_top(
    scores: Tensors, mask: Tensors, count: int, nested: bool, on_collapse: str, where: str, data: bool = True
) -> tuple[Tensors, int]:
    """The mask of the `count` highest scores, and how many of those weights have none and were only filled in.

    A weight whose score is exactly 0 has none: it comes after every other, even one with a negative score.

    Args:
        scores: finite, one tensor for each of the mask's, of its shape.
        mask: the present mask c_t, bool.
        count: k_{t+1}, of the whole network.
        nested: choose among the weights of the mask (Eq. 7), else among all (Eq. 6).
        on_collapse: "raise", or "keep" to fill in by position.
        where: the step, for the error.
        data: whether the scores look at data, of which more might help.

    Raises:
        CollapsedError: fewer weights have a score than are to be kept.

    """
    total = sum(score.numel() for score in scores.values())
    # A nested method chooses from what is left, so its cost falls with every step.
    places = _places(mask) if nested else None
    flat = flatten(scores) if places is None else gather(scores, places)
    # Where all are kept there is nothing to choose, and a weight without a score is no collapse.
    missing = max(count - int(flat.count_nonzero()), 0) if count < len(flat) else 0
    if missing and on_collapse == "raise":
        empty = [name for name, score in scores.items() if not (score[mask[name]] if nested else score).any()]
        raise CollapsedError(
            f"collapsed at {where}, density {count / total:.6g}: {count:,} weights are to be kept"
            f" but only {count - missing:,} have a finite, non-zero score."
            f" {_what_is_the_matter(empty, len(flat), count - missing, count, data)},"
            " or on_collapse='keep' to fill up by position"
        )
    if missing or flat.min() < 0:
        flat.masked_fill_(flat == 0, torch.finfo(flat.dtype).min)
    chosen = top(flat, count)
    return unflatten(chosen, mask) if places is None else scatter(chosen, places, mask), missing


def keep_pattern(
    pattern: Patterned,
    scores: Tensors,
    mask: Tensors,
    count: int,
    nested: bool,
    on_collapse: str,
    where: str,
    data: bool = True,
) -> tuple[Tensors, int]:
    """The best mask of a pattern with at most `count` weights; otherwise as `keep_top`.

    Filled in are the weights that belong together with none that has a score.

    Raises:
        CollapsedError: there are such weights.
        ValueError: the pattern cannot keep as few as that.

    """
    total = sum(score.numel() for score in scores.values())
    available = mask if nested else {name: torch.ones_like(keep) for name, keep in mask.items()}
    chosen = pattern.choose(scores, available, count)
    all_kept = all(torch.equal(keep, available[name]) for name, keep in chosen.keep.items())
    filled = 0 if all_kept else chosen.filled
    if filled and on_collapse == "raise":
        empty = [name for name, score in scores.items() if not (score * available[name]).any()]
        raise CollapsedError(
            f"collapsed at {where}, density {count / total:.6g}: {filled:,} of the weights to be kept are in groups of"
            f" the pattern {pattern.name} in which no weight has a finite, non-zero score."
            f" Layers without any: {', '.join(empty) or 'none'}."
            f" Use {_more_batches(data)}another number of steps or a higher density,"
            " or on_collapse='keep' to fill up by position"
        )
    return chosen.keep, filled


def _what_is_the_matter(empty: list[str], choice: int, scored: int, count: int, data: bool) -> str:
    if empty:
        return (
            f"Layers without any: {', '.join(empty)}."
            f" Use {_more_batches(data)}another number of steps or a higher density"
        )
    inactive = ", or are not active on these batches" if data else ""
    return (
        f"Every layer has some, but {choice - scored:,} of the {choice:,} weights to choose from lie on no path that"
        f" carries a signal: their channels have no input or output left{inactive}."
        f" This step prunes only {choice - count:,}."
        f" Use fewer steps, so that each prunes more, {_more_batches(data)}or a higher density"
    )


def _more_batches(data: bool) -> str:
    return "more batches_per_step, " if data else ""


def _places(mask: Tensors) -> Tensors | None:
    """Where each layer's kept weights lie; None where nothing is pruned yet."""
    if all(keep.all() for keep in mask.values()):
        return None
    return {name: keep.flatten().nonzero().flatten() for name, keep in mask.items()}

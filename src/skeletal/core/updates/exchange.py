"""What sparse training does to a layer: some weights stay, and as many come as go."""

import torch
from torch import Tensor

from skeletal.core.masks.selection import top


def check_room(kept: int, total: int) -> None:
    """Refuse a mask in which nothing can be exchanged.

    Raises:
        ValueError: every weight is kept.

    """
    if kept == total:
        raise ValueError("the mask keeps all weights, so that none can come for those that go: begin with a sparse one")


def stay(scores: Tensor, keep: Tensor, number: int) -> Tensor:
    """What is left of a layer's kept weights when the `number` with the lowest scores go; ties keep the first position.

    Args:
        scores: finite, of the layer's shape.
        keep: bool, of the same shape.
        number: at most as many as are kept.

    """
    left = int(keep.sum()) - number
    return top(scores.masked_fill(~keep, -torch.inf).flatten(), left).view(keep.shape)


def grow(scores: Tensor, staying: Tensor, number: int) -> Tensor:
    """What stays, and the `number` with the highest scores among all others; ties go to the first position.

    A weight that goes may come back at once: then it has not gone, and keeps its value.
    """
    come = top(scores.masked_fill(staying, -torch.inf).flatten(), number).view(staying.shape)
    return staying | come

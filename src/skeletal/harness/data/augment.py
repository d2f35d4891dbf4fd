"""Random crops and flips of a whole batch of uint8 images at once, then normalization to float32.

The crop is taken from the image with a border of zeros, as torchvision's `RandomCrop(padding=...)` before
`Normalize`: the border is black in the raw image, hence `-mean / std` in the result, not 0. One `gather`
reads the shifted and, where drawn, mirrored pixels; of the ways tried (windows by `unfold`, slices stacked,
one flat index into the whole padded set) it was the fastest, and it needs no padded copy of the set.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Draws(NamedTuple):
    """The random choices for B images."""

    top: Tensor  # (B,) int64 in [0, 2 * padding]: first row of the crop in the padded image
    left: Tensor  # (B,) the same for columns
    mirror: Tensor  # (B,) bool


def draw(batch: int, *, padding: int, flip: bool, generator: torch.Generator) -> Draws:
    """Draw crops, all equally likely, and mirrorings with probability 1/2 (never where `flip` is false)."""
    top, left = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator)
    mirror = torch.randint(0, 2 if flip else 1, (batch,), generator=generator).bool()
    return Draws(top, left, mirror)


def crop_and_flip(images: Tensor, draws: Draws, padding: int) -> Tensor:
    """Return the drawn crops, mirrored where drawn: uint8 `(B, C, H, W)` in, the same out; `draws` on its device."""
    B, C, H, W = images.shape
    padded = pad(images, (padding,) * 4)  # (B, C, H + 2p, W + 2p)
    column = torch.arange(W, device=images.device)
    rows = draws.top[:, None] + torch.arange(H, device=images.device)  # (B, H)
    columns = draws.left[:, None] + torch.where(draws.mirror[:, None], W - 1 - column, column)  # (B, W)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W)
    return padded.flatten(2).gather(2, pixels.view(B, 1, H * W).expand(B, C, H * W)).view(B, C, H, W)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return `(images / 255 - mean) / std` as float32; `mean` and `std` are `(C,)`."""
    scale, shift = 1 / (255 * std), -mean / std
    return images.float().mul_(scale[:, None, None]).add_(shift[:, None, None])

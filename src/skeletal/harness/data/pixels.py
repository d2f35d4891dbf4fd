"""Decoding of pictures.

Many small ones in one thread: for 32x32 and 64x64 JPEGs Pillow spends most of its time in Python, under the
interpreter lock, and two or four threads were measured to take as long as one (about 10,000 CIFAR images/s).
"""

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skeletal.core.extras import extra
from skeletal.harness.data.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
"""what Pillow may take a file for: none of these starts another program"""


def cannot_decode(picture: object, reason: object) -> DataError:
    """The error for a damaged picture."""
    return DataError(
        f"{picture}: cannot decode the image ({reason}); mend or remove it, or leave such images out with"
        " --skip-corrupt"
    )


def in_eight_bits(image: Any, mode: str) -> Any:
    """A picture in "L" or "RGB". Those of 16 bits are scaled, where Pillow would cut off all above 255.

    Raises:
        ValueError: a picture of 32 bits or of floating-point numbers, whose range nothing states.

    """
    with extra("run"):
        from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r}, 32 bits, of unknown range: save it with 8 or 16 bits")
    return image.convert(mode)  # a copy even if the mode is the same, so that the file may be closed


def warn_of_skipped(skipped: Sequence[str], examples: int) -> None:
    """Say how many of the pictures were left out, and which was the first; nothing, if there are none."""
    if skipped:
        warnings.warn(
            f"skipped {len(skipped):,} of {examples:,} images that cannot be decoded, the first: {skipped[0]}",
            stacklevel=2,
        )


def decode(
    pictures: Sequence[bytes | Path],
    describe: Callable[[int], str],
    *,
    channels: int,
    size: int,
    skip_corrupt: bool = False,
) -> tuple[Tensor, list[int]]:
    """Decode encoded pictures, or files, of `size` by `size` pixels.

    Returns:
        The images, uint8, `(N, channels, size, size)`, and which of the pictures they are: all, unless `skip_corrupt`.

    Raises:
        DataError: a picture is of another size, or damaged where none may be skipped; `describe(i)` names it.

    """
    with extra("run"):
        from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    out = np.empty((len(pictures), channels, size, size), dtype=np.uint8)
    decoded: list[int] = []
    skipped: list[str] = []
    for i, source in enumerate(pictures):
        try:
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                found = image.size
                if found == (size, size):  # before decoding: a huge picture is refused unread
                    pixels = np.asarray(in_eight_bits(image, mode))
                    out[len(decoded)] = pixels.reshape(size, size, channels).transpose(2, 0, 1)
        except Exception as error:  # Pillow raises nearly anything on a damaged file
            if not skip_corrupt:
                raise cannot_decode(describe(i), error) from error
            skipped.append(describe(i))
            continue
        if found != (size, size):
            raise DataError(f"{describe(i)}: {found[0]}x{found[1]} pixels, expected {size}x{size}")
        decoded.append(i)
    warn_of_skipped(skipped, len(pictures))
    return torch.from_numpy(out[: len(decoded)]), decoded

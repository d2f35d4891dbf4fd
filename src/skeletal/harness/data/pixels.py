"""Decoding of many small pictures.

In one thread: for 32x32 and 64x64 JPEGs Pillow spends most of its time in Python, under the interpreter lock,
and two or four threads were measured to take as long as one (about 10,000 CIFAR images/s).
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skeletal.harness.data.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
"""what Pillow may take a file for: none of these starts another program"""


def decode(pictures: Sequence[bytes | Path], describe: Callable[[int], str], *, channels: int, size: int) -> Tensor:
    """Decode encoded pictures, or files, of `size` by `size` pixels: uint8, `(N, channels, size, size)`.

    Raises:
        DataError: a picture is damaged or of another size; `describe(i)` names it.

    """
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    out = np.empty((len(pictures), channels, size, size), dtype=np.uint8)
    for i, source in enumerate(pictures):
        try:
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                found = image.size
                if found == (size, size):  # before decoding: a huge picture is refused unread
                    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
                    out[i] = pixels.reshape(size, size, channels).transpose(2, 0, 1)
        except Exception as error:  # Pillow raises nearly anything at a damaged file
            raise DataError(f"{describe(i)}: cannot decode the image ({error})") from error
        if found != (size, size):
            raise DataError(f"{describe(i)}: {found[0]}x{found[1]} pixels, expected {size}x{size}")
    return torch.from_numpy(out)

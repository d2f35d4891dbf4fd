"""Fashion-MNIST in MNIST's idx format, plain or gzipped: torchvision's folder, Debian's, or the bare files.

Format: two zero bytes, 8 for unsigned bytes, the number of dimensions, each dimension as a big-endian
32-bit number, then the bytes.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from skeletal.harness.data.errors import DataError
from skeletal.harness.data.memory import Arrays, Part, checked
from skeletal.harness.data.specs import Spec

LOOKS_FOR = "FashionMNIST/raw/ or train-images-idx3-ubyte[.gz] and its three companions"

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def _existing(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes into a uint8 tensor of the shape it states.

    Raises:
        DataError: the file is damaged, truncated or of another kind.

    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            zero, kind, dimensions = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            expected = math.prod(shape)
            content = file.read(expected + 1) if (zero, kind) == (0, 8) and expected < 2**32 else b""
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: not an idx file ({error})") from error
    if not content or len(content) != expected:
        raise DataError(f"{path}: not an idx file of {expected} unsigned bytes, as shape {shape} would need")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)


def _part(folder: Path, prefix: str, spec: Spec) -> Part:
    images, labels = (
        _existing(folder, f"{prefix}-images-idx3-ubyte"),
        _existing(folder, f"{prefix}-labels-idx1-ubyte"),
    )
    if images is None or labels is None:
        raise DataError(f"{folder}: {prefix}-images-idx3-ubyte[.gz] or {prefix}-labels-idx1-ubyte[.gz] is missing")
    return checked(read_idx(images).unsqueeze(1), read_idx(labels).long(), spec, images)


def find(root: Path, spec: Spec) -> Path | None:
    """Return the folder with the idx files: torchvision's below `root`, or `root` itself."""
    for folder in (root / "FashionMNIST" / "raw", root / "raw", root):
        if _existing(folder, "train-images-idx3-ubyte"):
            return folder
    return None


def read(folder: Path, spec: Spec) -> Arrays:
    """Read both parts; the class names are those of the data set's authors."""
    return Arrays(_part(folder, "train", spec), _part(folder, "t10k", spec), CLASSES)

"""CIFAR in its authors' and torchvision's layout: pickles, read without running anything in them.

A pickle is a program. This reader admits dicts, lists, numbers, strings and arrays of uint8; any other
name a file asks for is refused. Format: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skeletal.harness.data.errors import DataError
from skeletal.harness.data.memory import Arrays, Part, checked
from skeletal.harness.data.specs import Spec

LOOKS_FOR = "torchvision's cifar-10-batches-py/ or cifar-100-python/"

_FOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_TRAIN = {"cifar10": [f"data_batch_{i}" for i in range(1, 6)], "cifar100": ["train"]}
_TEST = {"cifar10": ["test_batch"], "cifar100": ["test"]}
_LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}
_META = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}


class _Dtype:
    """Stands in for `numpy.dtype`: admits uint8, and ignores the rest of its state."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {code!r}, expected uint8")

    def __setstate__(self, _: object) -> None: ...


class _Array:
    """Stands in for `numpy.ndarray`, whose own `__setstate__` would trust what the file says of memory."""

    values = np.empty(0, np.uint8)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, _, fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote str
        self.values = np.frombuffer(bytearray(content), np.uint8).reshape(shape, order="F" if fortran else "C")


def _latin1(text: str, _: str) -> bytes:
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): None,  # only ever an argument of `_reconstruct`
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes in a protocol 2 pickle
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]


def unpickle(path: Path) -> dict[str, Any]:
    """Read a dict of lists, strings and uint8 arrays.

    Raises:
        DataError: the file is damaged or asks for anything else.

    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except FileNotFoundError:
        raise DataError(f"{path}: missing, though its neighbours exist") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{path}: not a pickle of arrays and lists, refused: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a dict")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: value.values if isinstance(value, _Array) else value
        for key, value in content.items()
    }


def _whole(labels: Any) -> torch.Tensor:
    """Class numbers, of which torch would cut a fraction off."""
    if not isinstance(labels, np.ndarray) and not all(type(label) is int for label in labels):
        raise ValueError("labels have to be whole numbers")
    return torch.tensor(labels, dtype=torch.int64)


def _part(folder: Path, files: list[str], spec: Spec) -> Part:
    images, labels = [], []
    for file in files:
        content = unpickle(folder / file)
        try:
            pixels = torch.from_numpy(content["data"])
            targets = _whole(content[_LABELS[spec.name]])
            pixels = pixels.reshape(-1, spec.channels, spec.image_size, spec.image_size)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{folder / file}: not a batch of {spec.name} ({error!r})") from error
        part = checked(pixels, targets, spec, folder / file)
        images.append(part.images)
        labels.append(part.labels)
    return Part(torch.cat(images), torch.cat(labels))


def find(root: Path, spec: Spec) -> Path | None:
    """Return the folder with the batches: below `root`, or `root` itself."""
    for folder in (root / _FOLDER[spec.name], root):
        if (folder / _TRAIN[spec.name][0]).is_file() and (folder / _TEST[spec.name][0]).is_file():
            return folder
    return None


def read(folder: Path, spec: Spec) -> Arrays:
    """Read both parts and the class names."""
    file, key = _META[spec.name]
    names = unpickle(folder / file).get(key, ()) if (folder / file).is_file() else ()
    classes = tuple(map(str, names)) or tuple(map(str, range(spec.num_classes)))
    return Arrays(_part(folder, _TRAIN[spec.name], spec), _part(folder, _TEST[spec.name], spec), classes)

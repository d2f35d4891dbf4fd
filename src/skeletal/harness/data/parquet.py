"""The Hugging Face parquet layout: `train*.parquet` and `test*.parquet`, encoded images and a class number.

Columns: `img` or `image`, a struct with `bytes`; `label` (CIFAR-100: `fine_label`). Class names come from
the schema's `huggingface` metadata where it has them. A set without a test part is tested on `validation`,
`valid` or `val`; where there are both, the test part is the test set and the other is left alone.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from skeletal.core.extras import extra
from skeletal.harness.data.errors import DataError
from skeletal.harness.data.memory import Arrays, Part, checked
from skeletal.harness.data.pixels import decode
from skeletal.harness.data.specs import Spec

LOOKS_FOR = "train*.parquet and test*.parquet, as Hugging Face lays them out"

_IMAGE_COLUMNS = ("img", "image")
_TEST_STEMS = ("test", "validation", "valid", "val")


def _shards(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    for stem in stems:
        if files := sorted(folder.glob(f"{stem}*.parquet")):
            return files
    return []


def _complete(files: list[Path]) -> list[Path]:
    """The files, if they are each of those that their names say there are, once; names may say nothing."""
    stated = [re.search(r"-(\d+)-of-(\d+)\.parquet$", file.name) for file in files]
    if not any(stated):
        return files
    for file, found in zip(files, stated, strict=True):
        if found is None:
            raise DataError(f"{file}: other files of the part are numbered (as in -00000-of-00002): a second copy?")
        if int(found[2]) != len(files):
            raise DataError(f"{file}: one of {int(found[2])} files according to its name, but there are {len(files)}")
    return files


def _schema(path: Path) -> Any:
    with extra("run"):
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import read_schema

    try:
        return read_schema(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error})") from error


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    try:
        return tuple(json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _image_column(schema: Any) -> str | None:
    return next((name for name in _IMAGE_COLUMNS if name in schema.names), None)


def read_part(files: list[Path], spec: Spec, skip_corrupt: bool = False) -> Part:
    """Decode all examples of the files, in order.

    Raises:
        DataError: a file is damaged, or holds an image or a label that does not fit; it is named.

    """
    with extra("run"):
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import ParquetFile

    pictures: list[bytes] = []
    rows: list[tuple[Path, int]] = []
    labels: list[int] = []
    for path in files:
        column = _image_column(_schema(path))
        try:
            table = ParquetFile(path).read(columns=[f"{column}.bytes", spec.label_column])
            table = table.flatten()  # the struct's field becomes a column
            blobs, classes = (table.column(name).to_pylist() for name in (f"{column}.bytes", spec.label_column))
        except (ArrowException, OSError, KeyError) as error:
            raise DataError(f"{path}: cannot read the images and labels ({error})") from error
        if None in blobs or None in classes:
            raise DataError(f"{path}: a row without image bytes or without a label")
        if not all(isinstance(label, int) for label in classes):
            kind = _schema(path).field(spec.label_column).type
            raise DataError(f"{path}: labels have to be whole numbers; column {spec.label_column!r} is of type {kind}")
        pictures += blobs
        labels += classes
        rows += [(path, row) for row in range(len(blobs))]
    images, decoded = decode(
        pictures,
        lambda i: f"{rows[i][0]}, row {rows[i][1]}",
        channels=spec.channels,
        size=spec.image_size,
        skip_corrupt=skip_corrupt,
    )
    return checked(images, torch.tensor(labels, dtype=torch.int64)[decoded], spec, files[0].parent)


def find(root: Path, spec: Spec) -> Path | None:
    """Return the folder whose parquet files have the columns and the number of classes of `spec`."""
    for folder in (root, root / "data", root / "plain_text", root / spec.name.replace("-", "_")):
        train = _shards(folder, ("train",))
        if not train or not _shards(folder, _TEST_STEMS):
            continue
        schema = _schema(train[0])
        names = _class_names(schema, spec.label_column)
        if _image_column(schema) and spec.label_column in schema.names and len(names) in (0, spec.num_classes):
            return folder
    return None


def almost(root: Path, spec: Spec) -> str:
    """What is wrong with parquet files that are all there, but are not those of `spec`; "" if none are there."""
    for folder in (root, root / "data", root / "plain_text", root / spec.name.replace("-", "_")):
        train = _shards(folder, ("train",))
        if not train or not _shards(folder, _TEST_STEMS):
            continue
        schema = _schema(train[0])
        columns = ", ".join(schema.names)
        if not _image_column(schema):
            return f"{folder} has the files, but none of the image columns {', '.join(_IMAGE_COLUMNS)}: only {columns}"
        if spec.label_column not in schema.names:
            return f"{folder} has the files, but no label column {spec.label_column!r}: only {columns}"
        if (classes := len(_class_names(schema, spec.label_column))) not in (0, spec.num_classes):
            return f"{folder} has the files, but {classes} classes, where {spec.name} has {spec.num_classes}"
    return ""


def read(folder: Path, spec: Spec, skip_corrupt: bool = False) -> Arrays:
    """Read both parts; classes without names are numbered."""
    train, test = _complete(_shards(folder, ("train",))), _complete(_shards(folder, _TEST_STEMS))
    classes = _class_names(_schema(train[0]), spec.label_column) or tuple(map(str, range(spec.num_classes)))
    return Arrays(read_part(train, spec, skip_corrupt), read_part(test, spec, skip_corrupt), classes)

"""Data sets as the paper uses them: normalized, cropped and flipped at random, a part held out for validation.

Digits, Fashion-MNIST, CIFAR and Tiny-ImageNet are held whole in memory as uint8 and augmented in batches;
ImageNet and other image folders are decoded by worker processes. Nothing is downloaded unless `fetch` is called.
"""

from pathlib import Path
from typing import Any

from skeletal.core.choices import spelled
from skeletal.core.progress import say
from skeletal.harness.data import digits, folder, sources
from skeletal.harness.data.errors import DataError as DataError
from skeletal.harness.data.errors import DataNotFoundError as DataNotFoundError
from skeletal.harness.data.memory import assemble
from skeletal.harness.data.placing import resident as resident
from skeletal.harness.data.placing import shared as shared
from skeletal.harness.data.sources import fetch as fetch
from skeletal.harness.data.sources import found as found
from skeletal.harness.data.sources import where as where
from skeletal.harness.data.specs import NAMES as NAMES
from skeletal.harness.data.specs import SPECS as SPECS
from skeletal.harness.data.specs import Spec as Spec
from skeletal.harness.data.splits import BalancedStream as BalancedStream
from skeletal.harness.data.splits import Batch as Batch
from skeletal.harness.data.splits import Batches as Batches
from skeletal.harness.data.splits import Data as Data
from skeletal.harness.data.splits import Share as Share
from skeletal.harness.data.splits import Split as Split
from skeletal.harness.data.splits import Stream as Stream


def load(
    name: str,
    data_dir: Path | str | None = None,
    *,
    validation: float = 0.1,
    seed: int = 0,
    workers: int = 2,
    skip_corrupt: bool = False,
    image_size: int | None = None,
) -> Data:
    """Load a data set by one of `NAMES`, or the image folder at the path `name`.

    The validation split is `round(validation * N)` of the N training examples, drawn at random by `seed`
    alone; the test set is never part of it. `workers` processes decode the images of `imagenet` and of image
    folders; 0 decodes in this one. With `skip_corrupt` images that cannot be decoded are left out. `image_size` is
    the side that images of a folder are resized to, 224 by default.

    Warns:
        UserWarning: images were left out; says how many, and names the first.

    Raises:
        DataNotFoundError: the files are in none of the places `where(name, data_dir)`; says how to get them.
        DataError: a file is damaged or does not belong to this data set; names it.
        ValueError: an image size for a data set that is not an image folder.

    """
    options: dict[str, Any] = {"validation": validation, "seed": seed, "workers": workers, "skip_corrupt": skip_corrupt}
    options["size"] = image_size or folder.SIZE
    if not Path(name).is_dir():
        name = spelled(name, SPECS)
    if name not in SPECS:
        root = next((place for place in sources.where(name, data_dir) if folder.find(place)), None)
        if root is None:
            raise sources.unknown(name, data_dir)
        return folder.read(root, name, **options)
    spec = SPECS[name]
    if image_size not in (None, spec.image_size) and "folder" not in spec.layouts:
        side = f"{spec.image_size}x{spec.image_size}"
        raise ValueError(f"images of {name} are {side}, and stay so: --image-size is for image folders and imagenet")
    if name == "digits":
        return assemble(digits.read(spec), spec, validation=validation, seed=seed)
    match = sources.find(spec, data_dir)
    if match is None:
        raise sources.missing(spec, data_dir)
    layout, place = match
    if layout == "folder":
        data = folder.read(place, name, **options)
    else:
        data = assemble(sources.read(layout, place, spec, skip_corrupt), spec, validation=validation, seed=seed)
    _say_if_other(data, spec, place)
    return data


def _say_if_other(data: Data, spec: Spec, place: Path) -> None:
    """Say that what was read is a part of a data set (unpacked half-way, perhaps), or more than it."""
    examples = len(data.train) + len(data.validation), len(data.test)
    if (data.num_classes, *examples) != (spec.num_classes, *spec.examples):
        here, there = (f"{n:,} classes, {train:,} images to train and {test:,} to test" for n, (train, test) in (
            (data.num_classes, examples), (spec.num_classes, spec.examples)
        ))  # fmt: skip
        say(f"{place} is not the whole of {spec.name}: {here}, not {there}; results are not those of {spec.name}")

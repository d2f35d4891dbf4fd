"""Where each data set may lie, where it does lie, and what to say when it does not."""

import sys
from contextlib import redirect_stdout, suppress
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Literal

from skeletal.core.choices import plain, spelled
from skeletal.core.extras import extra
from skeletal.core.files import home
from skeletal.core.progress import stage
from skeletal.harness.data import cifar, folder, idx, parquet, tiny
from skeletal.harness.data.errors import DataError, DataNotFoundError
from skeletal.harness.data.memory import Arrays
from skeletal.harness.data.specs import NAMES, SPECS, Spec

IN_MEMORY = {"cifar": cifar, "idx": idx, "parquet": parquet, "tiny": tiny}
ENCODED = ("parquet", "tiny")  # image by image, so that one may be damaged
LAYOUTS = {**IN_MEMORY, "folder": folder}

_IN_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


def where(name: str, data_dir: Path | str | None = None) -> list[Path]:
    """Return the places looked in for a data set, in order; none for `digits`, one for the path of a folder.

    With `data_dir`: that folder, then `data_dir/<name>`. Without: `data/<name>` and `data` below the working
    folder, then the same below `~/.cache/skeletal`, then for Fashion-MNIST Debian's folder. An image folder
    does not say what it holds, so `imagenet` is then looked for only under its own name. The path of a folder is
    looked for as it is; with `data_dir` below that folder, which may also be the folder itself, and nowhere else.
    """
    if name not in SPECS:
        path = Path(name)
        if data_dir is None:
            return [path]
        inside = path.name if path.is_absolute() or ".." in path.parts else path
        return [Path(data_dir) / inside, Path(data_dir)]
    if name == "digits":
        return []
    if data_dir is not None:
        return [Path(data_dir), Path(data_dir) / name]
    shared = [Path("data"), *([own / ".cache" / "skeletal"] if (own := home()) else [])]
    places = [place for base in shared for place in (base / name, base)]
    if name == "imagenet":
        places = [place for place in places if place.name == name]
    if name == "fashion-mnist":
        places.append(DEBIAN_FASHION_MNIST)
    return places


def find(spec: Spec, data_dir: Path | str | None = None) -> tuple[str, Path] | None:
    """Return the layout and the folder of the first match; looks at names and schemas, decodes nothing."""
    for place in where(spec.name, data_dir):
        for layout in spec.layouts:
            if found := LAYOUTS[layout].find(place, spec):
                return layout, found
    return None


def _stamp(layout: str, folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a set's files: different if any of them has changed."""
    files = folder.rglob("*") if layout == "tiny" else folder.iterdir()
    stamps = []
    for file in files:
        with suppress(OSError):  # a link beside the files that leads nowhere
            stat = file.stat()
            stamps.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(stamps))


@lru_cache(maxsize=2)
def _read(layout: str, folder: Path, spec: Spec, skip_corrupt: bool, _: object) -> Arrays:
    options = {"skip_corrupt": True} if skip_corrupt and layout in ENCODED else {}
    return IN_MEMORY[layout].read(folder, spec, **options)


def read(layout: str, folder: Path, spec: Spec, skip_corrupt: bool = False) -> Arrays:
    """Read an in-memory set; once for all runs of a process, as long as its files stay as they are.

    Decoding CIFAR-10's JPEGs takes seconds, and a study may run hundreds of small jobs in a process. The last two sets
    stay in memory; nobody may write to their tensors.
    """
    return _read(layout, folder, spec, skip_corrupt, (folder.resolve(), _stamp(layout, folder)))


def found(data_dir: Path | str | None = None) -> dict[str, Path | Literal["embedded"] | None]:
    """Return for each data set the folder it would be read from, "embedded", or None where it is missing."""
    places: dict[str, Path | Literal["embedded"] | None] = {}
    for name, spec in SPECS.items():
        try:
            match = find(spec, data_dir)
        except DataError:  # a damaged file: `load` says so, an overview must not fail
            match = None
        places[name] = "embedded" if name == "digits" else match and match[1]
    return places


def missing(spec: Spec, data_dir: Path | str | None) -> DataNotFoundError:
    """Return the error for a data set that was not found."""
    places = "".join(
        f"\n  {place}{'' if place.is_dir() else '  (no such folder)'}" for place in where(spec.name, data_dir)
    )
    for place in where(spec.name, data_dir) if "parquet" in spec.layouts else ():
        if wrong := LAYOUTS["parquet"].almost(place, spec):
            return DataNotFoundError(f"{spec.name} cannot be read: {wrong}")
    looked_for = ", or ".join(LAYOUTS[layout].LOOKS_FOR for layout in spec.layouts)
    return DataNotFoundError(
        f"{spec.name} is not here. Looked in{places}\nfor {looked_for}.\nTo get it: {spec.get}\n"
        "Or say where it is: --data-dir."
        + (f" Or let skeletal run --data {spec.name} --download get it." if spec.name in _IN_TORCHVISION else "")
    )


def fetch(name: str, data_dir: Path | str | None = None) -> None:
    """Download CIFAR-10, CIFAR-100 or Fashion-MNIST through torchvision, if it is not here yet.

    Files go to `data_dir`, or else to `data` in the working folder, in torchvision's layout.

    Raises:
        DataNotFoundError: it cannot be downloaded; says why, and how to get it otherwise.

    """
    name = spelled(name, SPECS)
    if name not in SPECS or name == "digits" or find(SPECS[name], data_dir):
        return
    if name not in _IN_TORCHVISION:
        raise DataNotFoundError(f"torchvision does not download {name}. {missing(SPECS[name], data_dir)}")
    with extra("run"):
        from torchvision import datasets

    into = data_dir or Path("data")
    try:
        with stage(f"downloading {name} into {into}"), redirect_stdout(sys.stderr):
            getattr(datasets, _IN_TORCHVISION[name])(str(into), download=True)
    except (OSError, RuntimeError) as error:  # no network, a server that is down, an archive that is damaged
        raise DataNotFoundError(f"{name} cannot be downloaded: {error}\n{missing(SPECS[name], data_dir)}") from error


def unknown(name: str, data_dir: Path | str | None) -> DataNotFoundError:
    """Return the error for something that is neither a known name nor an image folder."""
    if data_dir is None and Path(name).is_dir():
        return DataNotFoundError(f"{Path(name)} is not {folder.LOOKS_FOR}")
    close = get_close_matches(plain(name), NAMES, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    looked = ""
    if data_dir is not None:
        places = (f"{place}{'' if place.is_dir() else ' (no such folder)'}" for place in where(name, data_dir))
        looked = f": looked in {' and '.join(places)} for {folder.LOOKS_FOR}"
    return DataNotFoundError(f"no data set and no folder {name!r}{looked}.{meant} There are {', '.join(NAMES)}.")

"""Run folders among other things."""

import os
from collections.abc import Iterator
from pathlib import Path

from skeletal.harness.store.folders import RunFolder, is_run


def runs_below(root: Path) -> Iterator[RunFolder]:
    """The run folders at `root` or anywhere below it, by path; whatever else lies there is skipped.

    Links to folders are followed; a folder that is reached twice is looked at once.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a run's `config.json` is damaged, or of another version.

    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: name run folders, or folders that contain some")
    seen = set()
    for place, below, _ in os.walk(root, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            below.clear()
            continue
        seen.add(real)
        if is_run(Path(place)):
            below.clear()
            yield RunFolder.at(Path(place))
        below[:] = sorted(name for name in below if not name.startswith("."))

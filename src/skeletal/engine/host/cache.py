"""Results that hold for this host alone: kept in the user's cache folder, by name."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from skeletal.core.files import home, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def remembered(name: str) -> dict[str, Any] | None:
    """What `remember` has written, or None."""
    path = _file(name)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def remember(name: str, found: dict[str, Any]) -> None:
    """Record a result for later processes; if that is not possible, they find it out again."""
    path = _file(name)
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found).encode())


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Wait while another process is in here under this name, as it may find what this one wants to know.

    Where files cannot be locked nobody waits, and each finds it out for itself.
    """
    path = _file(name)
    with ExitStack() as stack:
        if path is not None and fcntl is not None:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.with_suffix(".lock").open("a"))
                fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, or its process ends
        yield


def _file(name: str) -> Path | None:
    """The file of a name; None for a user without a home, for whom nothing is kept."""
    named, own = os.environ.get("XDG_CACHE_HOME"), home()
    folder = Path(named) if named else own and own / ".cache"
    return folder and folder / "skeletal" / f"{name}.json"

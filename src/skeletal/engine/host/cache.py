"""Results that hold for this host alone: kept in the user's cache folder, by name."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from skeletal.core.files import write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def remembered(name: str) -> dict[str, Any] | None:
    """What `remember` has written, or None."""
    try:
        found = json.loads(_file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def remember(name: str, found: dict[str, Any]) -> None:
    """Record a result for later processes; if that is not possible, they find it out again."""
    with suppress(OSError):
        path = _file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found).encode())


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Wait while another process is in here under this name, as it may find what this one wants to know.

    Where files cannot be locked nobody waits, and each finds it out for itself.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            path = _file(name).with_suffix(".lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a"))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, or its process ends
        yield


def _file(name: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "skeletal" / f"{name}.json"

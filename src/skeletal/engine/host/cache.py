"""Results that hold for this host alone: kept in the user's cache folder, by name."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from skeletal.core.files import write_atomically


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


def _file(name: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "skeletal" / f"{name}.json"

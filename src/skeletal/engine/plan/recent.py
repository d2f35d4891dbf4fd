"""What is worked out once for maps of a size, and kept while there are few sizes."""

from collections.abc import Callable, Hashable
from typing import Any

MOST = 16  # sizes; a network that sees as many in turn does not work anything out twice


def recent(kept: dict[Any, Any], key: Hashable, make: Callable[[], Any]) -> Any:
    """`kept[key]`, made where it is missing; what was made first goes where there would be more than `MOST`."""
    if key in kept:
        return kept[key]
    made = make()
    while len(kept) >= MOST:
        kept.pop(next(iter(kept)), None)
    kept[key] = made
    return made

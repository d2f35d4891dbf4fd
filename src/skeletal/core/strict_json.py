"""JSON that every program reads: it has no infinite numbers and no NaN, which Python writes all the same."""

import json
import math
from collections.abc import Mapping
from typing import Any


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def dumps(value: Any, **layout: Any) -> str:
    """The value as JSON, with null in place of infinite numbers and NaN; `layout` goes to `json.dumps`."""
    return json.dumps(_finite(value), allow_nan=False, **layout)

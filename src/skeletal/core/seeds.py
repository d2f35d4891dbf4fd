"""Seeds made from whatever a random choice depends on."""

from hashlib import blake2b
from operator import index


def seed_of(*key: int | str) -> int:
    """Return 63 bits that depend on every part of `key`; the same on every machine and Python version."""
    key = tuple(part if isinstance(part, str) else index(part) for part in key)  # numpy's integers look different
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1

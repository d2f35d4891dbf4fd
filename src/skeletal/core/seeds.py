"""Seeds made from whatever a random choice depends on."""

from hashlib import blake2b


def seed_of(*key: int | str) -> int:
    """Return 63 bits that depend on every part of `key`; the same on every machine and Python version."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1

"""What a launcher such as torchrun tells a process, before torch is loaded."""

import os


def launched() -> int:
    """How many processes it has started, this one among them; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or "1") if "RANK" in os.environ else 1

"""How long work takes, and how much memory the process holds meanwhile."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from skeletal.harness.ledger import Cost


class Stopwatch:
    """Measures time and peak memory from now on.

    The memory is the process's: what others do in it at the same time counts, too. On a CPU of Linux its peak is set
    back to what is held now; elsewhere it is the most that was held since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._started = device, time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            reset_peak()

    def read(self) -> Cost:
        """Time and memory so far."""
        return Cost(seconds=time.perf_counter() - self._started, peak_memory=peak_memory(self._device))


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: resident ones for a CPU, those that torch allocated on a GPU.

    0 where the system does not tell, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not first of getrusage: on Linux that begins with the peak of the program which this one was started in place of.
    if (peak := resident("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident(what: Literal["VmRSS", "VmHWM"]) -> int | None:
    """Bytes that this process holds now (VmRSS) or has held at most (VmHWM), as Linux tells; None elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{what}:"):
                return 1024 * int(line.split()[1])
    return None


def reset_peak() -> None:
    """Let the peak (VmHWM) begin again from what is held now, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

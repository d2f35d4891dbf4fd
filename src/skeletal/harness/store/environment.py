"""What a run ran on. Nothing here may fail: a record with gaps is better than a run that does not start."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from skeletal.core.model.distributed import ranks

RULE = "the batch size is that of all processes together; the learning rate is as given, not scaled by their number"
_PACKAGES = ("skeletal", "torch", "torchvision", "accelerate", "numpy", "numba", "safetensors")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, OSError):  # not there, or damaged
        return None


def cpu_model() -> str | None:
    """What the CPU calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _gpus() -> list[dict[str, Any]]:
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": card.name, "memory_gib": round(card.total_memory / 2**30, 1)} for card in cards]


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _checkout() -> dict[str, Any]:
    _git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie inside a foreign checkout
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}


def _or_none(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except (OSError, ValueError, AttributeError, RuntimeError, AssertionError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Versions, processor, memory, GPUs, commit, UTC date and command line; `None` where unknown.

    Memory is in GiB. The commit is that of skeletal's own checkout, `None` for an installed package.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "cuda": torch.version.cuda,
        "cpu": _or_none(cpu_model),
        "cores": _or_none(_usable_cores),
        "threads": torch.get_num_threads(),
        "processes": {"number": ranks(), "rule": RULE},
        "memory_gib": _or_none(_memory_gib),
        "gpus": _or_none(_gpus),
        "checkout": _or_none(_checkout),
    }

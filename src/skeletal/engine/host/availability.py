"""Whether the engine's kernels can be trusted on this host: compiled and compared with torch once, then remembered.

numba may be missing, or newer than what this package was tested with; LLVM may emit code that a CPU cannot run,
or runs wrongly. Any of this would otherwise end a training run midway or, worse, not end it. The check runs in a
process of its own, which may crash. What it compiles stays in numba's cache, where the first network finds it.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

from skeletal.core.progress import stage
from skeletal.core.version import __version__
from skeletal.engine.host.cache import one_at_a_time, remember, remembered
from skeletal.engine.host.processor import processor

_SECONDS = 900
"""for a check: many times what compiling takes on a busy machine"""
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from skeletal.engine.host.self_check import main; main()"
)
_CRASHES = "SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGABRT", "SIGTRAP"
"""what code that a CPU cannot run ends in; other signals come from somebody else"""
_PACKAGES = "numba", "llvmlite", "numpy", "torch"
_SETTINGS = "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_DISABLE_JIT", "NUMBA_OPT", "NUMBA_ENABLE_AVX"


@dataclass(frozen=True)
class Availability:
    """True where the engine can be used."""

    reason: str | None
    """why not, in one line"""

    def __bool__(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return self.reason or "available"


@lru_cache
def available(maps: str = "float32") -> Availability:
    """Whether the sparse engine works here: its kernels compile, and agree with torch on small layers.

    The first call on a host compiles them, as the first network would; the result is kept in skeletal's cache folder
    (`XDG_CACHE_HOME` or `~/.cache`), by CPU and versions, and for as long as neither changes.

    Args:
        maps: type of the maps, "float32" or "bfloat16": each has kernels of its own. Networks in bfloat16 use
            both, so asking for "bfloat16" checks both, at the same time.

    Returns:
        An `Availability`: true, or false with a `reason`, which `str` gives, too.

    """
    missing = [package for package in _PACKAGES[:2] if _place(package) is None]
    if missing:
        return Availability(f"{' and '.join(missing)} cannot be found: pip install {' '.join(missing)}")
    names = {kind: f"engine-{_key(kind)}" for kind in dict.fromkeys(("float32", maps))}
    known = _known(names)
    if maps not in known:
        told = stage("compiling the sparse engine's kernels and checking them, once on this machine")
        with told, one_at_a_time(names["float32"]):  # ranks and workers start together
            known = _known(names)
            answers = _check([kind for kind in names if kind not in known])
            for kind, (reason, lasts) in answers.items():
                known[kind] = reason
                if lasts:
                    remember(names[kind], {"reason": reason, "maps": kind, "versions": _versions()})
    return Availability(known[maps])


def _known(names: Mapping[str, str]) -> dict[str, str | None]:
    """What earlier checks have found, by type of the maps."""
    found = {kind: remembered(name) for kind, name in names.items()}
    return {kind: entry["reason"] for kind, entry in found.items() if entry is not None and "reason" in entry}


def _check(kinds: list[str]) -> dict[str, tuple[str | None, bool]]:
    """For each type of maps, why its kernels cannot be used, or None, and whether another check would find the same.

    Each type is checked in a process of its own, all at the same time: numba compiles in one thread only.
    """
    checks: dict[str, subprocess.Popen[str]] = {}
    try:
        for kind in kinds:
            checks[kind] = subprocess.Popen(
                [sys.executable, "-c", _CHILD, json.dumps(sys.path), kind],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,  # so that Ctrl-C reaches the run, which knows what to do, and not the check
            )  # fmt: skip
        return {kind: _answer(check) for kind, check in checks.items()}
    except OSError as error:
        return dict.fromkeys(kinds, (f"no process to check it in could be started: {error}", False))
    finally:
        for check in checks.values():
            with check:  # closes its pipes and waits for it
                check.kill()


def _answer(check: subprocess.Popen[str]) -> tuple[str | None, bool]:
    """What a check has found, or what became of it."""
    try:
        out, err = check.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"its kernels did not compile within {_SECONDS} seconds ({_versions()})", False
    with suppress(ValueError, KeyError, TypeError):
        reason = json.loads(out)["reason"]
        return reason and f"{reason} ({_versions()})", True
    if check.returncode < 0:
        name = signal.Signals(-check.returncode).name
        return f"compiling or running its kernels ended in {name} ({_versions()})", name in _CRASHES
    last = (err.strip().splitlines() or [f"exit status {check.returncode}"])[-1]
    return f"its check failed: {last} ({_versions()})", False


def _versions() -> str:
    return ", ".join(f"{package} {_version(package)}" for package in _PACKAGES)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _place(package: str) -> str | None:
    """Where a package would be loaded from, without loading it."""
    try:
        spec = util.find_spec(package)
    except ValueError:  # it is loaded, from nowhere
        return None
    return None if spec is None else spec.origin


def _key(maps: str) -> str:
    """What the result depends on."""
    places = [_place(package) for package in _PACKAGES]
    files = [*map(Path, filter(None, places)), *sorted(Path(__file__).parent.parent.rglob("*.py"))]
    states = [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files)]
    parts = __version__, maps, places, _versions(), sys.version, states, processor("model name", "flags", "Features")
    return hashlib.sha256(repr((parts, [os.environ.get(name) for name in _SETTINGS])).encode()).hexdigest()[:24]

"""The CPU that machine code is made for: this one, unless numba's settings name another."""

from llvmlite import binding
from numba.core import config


def host_features() -> dict[str, bool]:
    """What this CPU has, by LLVM's names."""
    try:
        return dict(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell
        return {}


def target_features() -> dict[str, bool]:
    """What numba compiles for: `NUMBA_CPU_FEATURES`, where that is set."""
    named: str | None = getattr(config, "CPU_FEATURES")  # noqa: B009 - numba sets it while it loads
    if named is None:
        return host_features()
    return {name[1:]: name[0] == "+" for name in named.split(",") if name}

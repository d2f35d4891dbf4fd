"""How kernels become machine code: `compiled`, `intrinsic` for what Python cannot say, `overload` for choices."""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import types
from numba.extending import intrinsic as _intrinsic
from numba.extending import overload as _overload

_compiled = njit(  # NaN has to stay NaN, so not all of `fastmath`
    nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy"
)

MADE_OF = "codegen", "kernels", "plan"
"""the engine's folders with functions or numbers that become part of kernels"""


def compiled(function: Callable[..., Any]) -> Any:
    """A kernel, compiled at its first call for each kind of arguments, and kept on disk until any kernel changes."""
    kernel: Any = _compiled(function)
    if kernel is not function:  # as it is where numba is told not to compile (NUMBA_DISABLE_JIT)
        kernel._cache._cache_file._source_stamp = _kernels()
    return kernel


@lru_cache(maxsize=1)
def _kernels() -> str:
    """What all kernels are made of; numba asks for a kernel's own file, not for those it takes functions from."""
    engine = Path(__file__).parents[1]
    files = sorted(file for folder in MADE_OF for file in (engine / folder).rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


intrinsic: Any = _intrinsic
"""numba's; called without the first argument that a function is written with, which type checkers do not know about."""

overload: Any = _overload
"""numba's: chooses by the types of the arguments which function a call in compiled code means."""


def is_tuple(kind: Any) -> bool:
    """Whether a type, as `overload` sees it, is that of a tuple."""
    return isinstance(kind, types.BaseTuple)

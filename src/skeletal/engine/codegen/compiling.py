"""How kernels become machine code: `compiled`, `intrinsic` for what Python cannot say, `overload` for choices."""

from typing import Any

from numba import njit
from numba.core import types
from numba.extending import intrinsic as _intrinsic
from numba.extending import overload as _overload

compiled = njit(  # NaN has to stay NaN, so not all of `fastmath`
    nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy"
)

intrinsic: Any = _intrinsic
"""numba's; called without the first argument that a function is written with, which type checkers do not know about."""

overload: Any = _overload
"""numba's: chooses by the types of the arguments which function a call in compiled code means."""


def is_tuple(kind: Any) -> bool:
    """Whether a type, as `overload` sees it, is that of a tuple."""
    return isinstance(kind, types.BaseTuple)

"""How kernels become machine code: functions by `compiled`, what no Python says by `intrinsic`."""

from typing import Any

from numba import njit
from numba.extending import intrinsic as _intrinsic

compiled = njit(  # NaN has to stay NaN, so not all of `fastmath`
    nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy"
)

intrinsic: Any = _intrinsic
"""numba's; called without the first argument that a function is written with, of which type checkers know nothing."""

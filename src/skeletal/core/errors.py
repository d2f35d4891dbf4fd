"""What can go wrong, each under a name that a caller can catch."""

import sys
import warnings


class CollapsedError(RuntimeError):
    """Fewer weights carry a score than the schedule wants to keep: the network has collapsed."""


class NonFiniteError(ValueError):
    """A weight, a loss or a score is NaN or infinite; the message names the layer and the step."""


class MaskError(ValueError):
    """A mask does not fit its model, a pruned weight has moved, or a mask file is damaged or foreign."""


class BusyError(OSError):
    """Another process is working on the same run; the message says which, and since when."""


class CollapseWarning(UserWarning):
    """The finished mask leaves no path from the input to the output: the skeleton cannot learn."""


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line outside this package that called into it, however many of our functions lie in between."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("skeletal", "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)

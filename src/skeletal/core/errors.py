"""What can go wrong, each with the name a caller can catch."""


class CollapsedError(RuntimeError):
    """Fewer weights carry a score than the schedule wants to keep: the network has collapsed."""


class NonFiniteError(ValueError):
    """A weight, a loss or a score is NaN or infinite; the message names the layer and the step."""


class MaskError(ValueError):
    """A mask does not fit its model, a pruned weight has moved, or a mask file is damaged or foreign."""


class BusyError(OSError):
    """Another process is at work on the same run; the message says which, and since when."""


class CollapseWarning(UserWarning):
    """The finished mask leaves no path from the input to the output: the skeleton cannot learn."""

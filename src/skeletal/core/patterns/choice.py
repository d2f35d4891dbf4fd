"""From what a caller writes to a pattern. A new pattern is a function in `grouped.py`, and a row here."""

from skeletal.core.patterns import grouped, names
from skeletal.core.patterns.pattern import Pattern


def pattern_of(pattern: "str | Pattern | grouped.Groups | None") -> Pattern | None:
    """The pattern that a name stands for, or that a function makes; None stays None.

    Raises:
        ValueError: there is no such pattern, or it needs the analysis of `skeletal.compaction`.
        TypeError: neither a name, nor a `Pattern`, nor a function of a layer's scores.

    """
    if pattern is None or isinstance(pattern, Pattern):
        return pattern
    if callable(pattern):
        return grouped.Grouped(getattr(pattern, "__name__", "custom"), pattern)
    if not isinstance(pattern, str):
        raise TypeError(f"pattern is {type(pattern).__name__}; it has to be a name, such as '2:4', or a function")
    name = names.canonical(pattern)
    if name == names.FAN_IN:
        return grouped.Grouped(name, grouped.fan_in, in_order=True)
    if (found := names.n_of_m(name)) is not None:
        return grouped.Grouped(name, grouped.n_of_m(*found))
    if (found := names.block(name)) is not None:
        return grouped.Grouped(name, grouped.blocks(*found))
    raise ValueError(f"the pattern {name} needs an analysis of the network, which `skeletal.prune` brings: call that")

"""What the kernels of a convolution are handed, by name.

Made in compiled code, where a named tuple costs nothing: from Python each costs 3 microseconds more than a plain one.
"""

from typing import Any, NamedTuple

from skeletal.engine.codegen.compiling import compiled


class Maps(NamedTuple):
    """Where maps lie, and their line buffer."""

    height: int
    width: int
    halo: int
    plane: int
    channels: int
    rows: int
    """of a line buffer"""


class Prologue(NamedTuple):
    """What happens to maps before they are read: `x * scale + shift` by channel, empty for neither, then ReLU."""

    scale: Any
    shift: Any
    relu: int


class Source(NamedTuple):
    """Maps that are read."""

    data: Any
    """flat, in slots"""
    block: int
    """slots from one block of examples to the next"""
    maps: Maps
    buffers: Any
    """a line buffer for each thread; see `line_buffer`"""


class Target(NamedTuple):
    """Maps that are written."""

    data: Any
    """flat, in slots; empty where they are not wanted"""
    block: int
    numbers: Any
    """the same memory, number by number"""
    grid: tuple[int, int, int, int]
    """height, width, halo, plane in numbers"""


class Epilogue(NamedTuple):
    """What happens to sums before they are written: `sum * scale + shift`, plus `other`, ReLU, gradient of a ReLU."""

    scale: Any
    """for each output channel; empty for neither scale nor shift"""
    shift: Any
    other: Any
    """of the layout of the target; empty for none"""
    relu: int
    """1 ends with one"""
    relu_output: Any
    """where this is not above 0 the result is 0; empty for none"""


class NormGradient(NamedTuple):
    """The way back through batch norm: `gradient_factor * g + x_factor * x + constant` by channel.

    g is the gradient before a ReLU; `other` gets it, if there is one. The last three are empty without a batch norm.
    """

    x: Any
    z: Any
    """batch norm's output, where that is needed to know whether the ReLU was open"""
    other: Any
    relu: int
    scale: Any
    shift: Any
    gradient_factor: Any
    x_factor: Any
    constant: Any


@compiled
def unit_of(unit, splits, bands):
    """Block of examples, band of tiles, and part of the channels of a unit of work."""
    return unit // splits // bands, unit // splits % bands, unit % splits


@compiled
def share_of(count, split, splits):
    """First and last of `count` that belong to a part."""
    return count * split // splits, count * (split + 1) // splits

"""What removing dead channels has done to a network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CutLayer:
    """One convolution, linear layer or norm of a `Report`; pairs are before and after."""

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    kept: int
    """weights that the mask keeps; 0 for a layer that it does not cover"""
    dropped: int
    """of them, those removed with dead channels"""
    constant: int
    """output channels left although no input reaches them: they emit a bias, or may come to in training"""
    zero: int
    """output channels left although they are 0: others, tied to them, are needed"""
    removed_zero: int
    """output channels removed because they are, and stay, 0"""
    removed_unread: int
    """output channels removed because nothing reads them"""
    padding: int = 0
    """output channels of zeros in their place, which fill up the width"""


@dataclass(frozen=True)
class Report:
    """What `compact` found and did; `print` shows a line per layer."""

    layers: tuple[CutLayer, ...]
    macs: tuple[int, int]
    """forward multiply-accumulates per example of the layers the mask covers, all weights counted: before and after"""
    held: tuple[str, ...]
    """operations around which channels were left whole, and why"""
    whole: str | None = None
    """why nothing was removed at all"""

    def __str__(self) -> str:
        if self.whole is not None:
            return f"left whole, because {self.whole}"
        width = max(len("layer"), *(len(layer.name) for layer in self.layers), 0)
        columns = ("inputs", "outputs", "weights", "dropped", "constant", "tied zeros", "gone: zeros", "gone: unread")
        padded = any(layer.padding for layer in self.layers)
        columns += ("filled up",) if padded else ()
        lines = [f"{'layer':{width}}" + "".join(f"  {column:>12}" for column in columns)]
        for layer in self.layers:
            cells = [f"{before} > {after}" for before, after in (layer.inputs, layer.outputs)]
            counts = (layer.kept, layer.dropped, layer.constant, layer.zero, layer.removed_zero, layer.removed_unread)
            counts += (layer.padding,) if padded else ()
            cells += [f"{count:,}" for count in counts]
            lines.append(f"{layer.name:{width}}" + "".join(f"  {cell:>12}" for cell in cells))
        before, after = self.macs
        kept, dropped = (sum(getattr(layer, what) for layer in self.layers) for what in ("kept", "dropped"))
        lines += [
            "",
            "outputs left: constant, since no input reaches them but a bias may; zeros, since others are tied to them",
            *(["filled up: outputs of zeros in the place of dead ones, up to a multiple"] if padded else []),
            f"weights dropped as dead: {dropped:,} of {kept:,} kept",
            f"MACs per example, forward, without the mask: {before:,} before, {after:,} after"
            f" ({100 * after / max(before, 1):.3f}%)",
        ]
        lines += [f"left whole: {reason}" for reason in self.held]
        return "\n".join(lines)

"""The geometry of a convolution, without its weights."""

from dataclasses import dataclass
from functools import lru_cache

Pair = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """A convolution without its weights."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    kernel: Pair

    def output(self, height: int, width: int) -> Pair:
        """Height and width of what it makes of a map.

        Raises:
            ValueError: the map is too small.

        """
        found = [
            (size + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i, size in enumerate((height, width))
        ]
        if min(found) < 1:
            raise ValueError(f"a map of {height} x {width} pixels is too small for a {self}")
        return found[0], found[1]

    def halos(self, height: int, width: int) -> Pair:
        """Pixels of zeros that it needs around its input, and around the gradient of its output."""
        return _halos(self, height, width)

    def shifts(self, axis: int, phase: int) -> dict[int, int]:
        """Which kernel positions an input pixel of index `phase` modulo the stride meets, and which output there.

        Position i: input `phase + stride m` contributed to output `m + shift`.
        """
        found = {}
        for position in range(self.kernel[axis]):
            distance = phase + self.padding[axis] - position * self.dilation[axis]
            if distance % self.stride[axis] == 0:
                found[position] = distance // self.stride[axis]
        return found


@lru_cache(maxsize=4096)
def _halos(shape: Shape, height: int, width: int) -> Pair:
    ahead, back = 0, 0
    for i, (size, made) in enumerate(zip((height, width), shape.output(height, width), strict=True)):
        reach = shape.dilation[i] * (shape.kernel[i] - 1)
        ahead = max(ahead, shape.padding[i], (made - 1) * shape.stride[i] - shape.padding[i] + reach - (size - 1))
        for phase in range(min(shape.stride[i], size)):
            last = (size - 1 - phase) // shape.stride[i]
            for shift in shape.shifts(i, phase).values():
                back = max(back, -shift, last + shift - (made - 1))
    return ahead, back

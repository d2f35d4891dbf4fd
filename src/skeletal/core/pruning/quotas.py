"""How many weights each layer keeps if layer densities are fixed in advance: quotas that add up exactly."""

import math
from collections.abc import Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]


def uniform(shapes: Shapes, count: int, at_most: Mapping[str, int] | None = None) -> dict[str, int]:
    """The same density in every layer, up to rounding; the quotas add up to `count`.

    If `at_most` leaves a layer fewer weights, it gets those, and the shortfall goes to the others.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return _proportional({name: float(size) for name, size in sizes.items()}, at_most or sizes, count)


def erdos_renyi(shapes: Shapes, count: int) -> dict[str, int]:
    """Densities proportional to Σ dims / Π dims (Erdős-Rényi-Kernel), so kept weights are proportional to Σ dims.

    A layer that would be more than dense is dense, and its excess goes to the others in the same proportion. The
    quotas add up to `count`. (Evci et al. 2020, "Rigging the Lottery", Eq. in section 3; Mocanu et al. 2018.)
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return _proportional({name: float(sum(shape)) for name, shape in shapes.items()}, sizes, count)


def _proportional(shares: dict[str, float], sizes: Mapping[str, int], count: int) -> dict[str, int]:
    full: set[str] = set()
    while True:
        rest = count - sum(sizes[name] for name in full)
        open_share = sum(shares[name] for name in shares if name not in full)
        ideal = {name: rest * shares[name] / open_share for name in shares if name not in full}
        over = {name for name, wanted in ideal.items() if wanted > sizes[name]}
        if not over:
            break
        full |= over
    quotas = {name: sizes[name] if name in full else math.floor(ideal[name]) for name in shares}
    # The largest remainders are rounded up; ties go to the first layer.
    missing = count - sum(quotas.values())
    by_remainder = sorted(ideal, key=lambda name: quotas[name] - ideal[name])
    for name in [name for name in by_remainder if quotas[name] < sizes[name]][:missing]:
        quotas[name] += 1
    return quotas

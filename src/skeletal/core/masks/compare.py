"""How alike two masks are: weight by weight, and layer by layer."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from skeletal.core.errors import MaskError


def overlap(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """Weights kept by both, of those kept by either (Jaccard): 1 for the same mask, 0 for nothing in common.

    Small between any two runs of an iterative method, because masks are chaotic; not a measure of quality.

    Raises:
        MaskError: the masks are of different networks.

    """
    both = sum(int((keep & other).sum()) for keep, other in _pairs(one, two))
    return _share(both, sum(int((keep | other).sum()) for keep, other in _pairs(one, two)))


def layer_agreement(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """Σ min(a_l, b_l) / Σ max(a_l, b_l) over the layers' numbers of kept weights: 1 for the same number in each.

    The overlap that two masks would have if, within each layer, the same weights came first in both.

    Raises:
        MaskError: the masks are of different networks.

    """
    counts = [(int(keep.sum()), int(other.sum())) for keep, other in _pairs(one, two)]
    return _share(sum(map(min, counts)), sum(map(max, counts)))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _pairs(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    if one.keys() != two.keys() or any(one[name].shape != two[name].shape for name in one):
        raise MaskError("the two masks are of different networks: they have other layers or shapes")
    return [(one[name].bool(), two[name].bool()) for name in one]

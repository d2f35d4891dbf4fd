import pytest
import torch

from skeletal.core.errors import MaskError
from skeletal.core.masks.compare import layer_agreement, overlap


def mask(**layers):
    return {name: torch.tensor([bit == "1" for bit in bits]) for name, bits in layers.items()}


@pytest.mark.parametrize(
    "one, two, weights, layers",
    [
        (mask(a="1100", b="10"), mask(a="1100", b="10"), 1, 1),
        (mask(a="1100", b="10"), mask(a="0011", b="01"), 0, 1),
        (mask(a="1100", b="10"), mask(a="0110", b="10"), 2 / 4, 1),
        (mask(a="1110", b="00"), mask(a="1000", b="11"), 1 / 5, 1 / 5),
        (mask(a="0000", b="00"), mask(a="0000", b="00"), 1, 1),
        (mask(a="0000", b="00"), mask(a="1000", b="00"), 0, 0),
    ],
)
def test_by_hand(one, two, weights, layers):
    for first, second in ((one, two), (two, one)):
        assert overlap(first, second) == weights
        assert layer_agreement(first, second) == layers
        assert overlap({name: keep.float() for name, keep in first.items()}, second) == weights


def test_layers_agree_at_least_as_well_as_weights():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        one, two = (
            {name: torch.rand(20, generator=generator) < share for name, share in (("a", 0.2), ("b", 0.7))}
            for _ in range(2)
        )
        assert 0 <= overlap(one, two) <= layer_agreement(one, two) <= 1


def test_masks_of_two_networks_are_refused():
    for other in (mask(a="110"), mask(b="1100")):
        for measure in (overlap, layer_agreement):
            with pytest.raises(MaskError, match="of different networks"):
                measure(mask(a="1100"), other)

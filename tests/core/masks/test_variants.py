import torch
from hypothesis import given
from hypothesis import strategies as st

from skeletal.core.masks.mask import Mask

shapes = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4)


@st.composite
def masks(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return Mask(
        {
            f"layer{i}": torch.rand(shape, generator=generator) < draw(st.floats(0, 1))
            for i, shape in enumerate(draw(shapes))
        }
    )


def counts(mask):
    return {name: (tuple(keep.shape), int(keep.sum())) for name, keep in mask.items()}


@given(masks(), st.integers(0, 2**40))
def test_shuffling_keeps_names_shapes_and_counts(mask, seed):
    before = {name: keep.clone() for name, keep in mask.items()}
    assert counts(mask.shuffled(seed)) == counts(mask)
    assert list(mask.shuffled(seed)) == list(mask)
    assert mask.shuffled(seed) == mask.shuffled(seed)
    assert mask == before


def test_every_position_is_as_likely():
    mask = Mask({"a": torch.arange(6).view(2, 3) < 2})
    times = sum(mask.shuffled(seed)["a"].float() for seed in range(600)) / 600
    assert ((times - 1 / 3).abs() < 0.08).all()  # four standard deviations


def test_seeds_and_layers_are_drawn_independently():
    mask = Mask({name: torch.arange(1000) < 500 for name in "ab"})
    one, two = mask.shuffled(0), mask.shuffled(1)
    assert one != mask and one != two
    assert not torch.equal(one["a"], one["b"])


def test_the_caller_learns_what_became_of_it():
    mask = Mask({"a": torch.ones(4)}, {"method": "force", "connected": True, "biases": 3})
    made = mask.shuffled(7).metadata
    assert made == {"method": "force-shuffled", "shuffled": 7, "connected": None, "biases": 3}
    assert mask.metadata["method"] == "force"
    assert Mask({"a": torch.ones(4)}).shuffled(0).metadata["method"] == "mask-shuffled"

"""The parts of a batch that processes take make up the batch."""

import pytest
import torch

from skeletal.harness import data as data_sets
from skeletal.harness.data.memory import MemorySplit
from tests.harness.training.digits import SPEC, data


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_parts_make_up_the_batch(ranks):
    whole = data().train
    for train_ in (True, False):
        options = dict(train=train_, seed=2, epoch=1)
        parts = [
            list(
                MemorySplit(whole.part, whole.members, SPEC, share=data_sets.Share(rank, ranks)).batches(20, **options)
            )
            for rank in range(ranks)
        ]
        for batch, *of_ranks in zip(whole.batches(20, **options), *parts, strict=True):
            sizes = [len(y) for _, y in of_ranks]
            assert sum(sizes) == len(batch[1]) and max(sizes) - min(sizes) <= 1
            for rank, (images, labels) in enumerate(of_ranks):
                assert torch.equal(images, batch[0][rank::ranks]) and torch.equal(labels, batch[1][rank::ranks])


def test_balanced_batches_are_divided_too():
    split = data().train
    whole = next(iter(data_sets.BalancedStream(split, 40, 0, 10)))
    for rank in (0, 1):
        part = next(iter(data_sets.BalancedStream(split, 40, 0, 10, data_sets.Share(rank, 2))))
        assert torch.equal(part[0], whole[0][rank::2]) and torch.equal(part[1], whole[1][rank::2])

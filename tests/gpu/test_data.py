"""Batches made on a GPU are those made on the CPU, to rounding; the set moves there once."""

import torch

from skeletal.harness import data
from skeletal.harness.data import memory
from tests.gpu.waiting import waiting_is_an_error


def test_batches_are_the_same_on_both():
    split = data.load("digits").train
    there = data.resident(split, torch.device("cuda", 0))
    for train in (True, False):
        for epoch in (0, 1):
            options = dict(train=train, seed=3, epoch=epoch)
            for (x, y), (u, v) in zip(split.batches(100, **options), there.batches(100, **options), strict=True):
                assert u.is_cuda and v.is_cuda and torch.equal(y, v.cpu())
                torch.testing.assert_close(u.cpu(), x, rtol=1e-6, atol=1e-6)


def test_the_set_moves_once():
    part, there = data.load("digits").train.part, torch.device("cuda", 0)
    before = torch.cuda.memory_allocated()
    first = memory._on(there, part)
    assert memory._on(there, part).images is first.images
    assert torch.cuda.memory_allocated() - before < 2 * (part.images.numel() + 8 * len(part.labels)) + 4096


def test_a_pass_does_not_wait_for_the_gpu():
    split = data.resident(data.load("digits").train, torch.device("cuda", 0))
    batches = iter(split.batches(50, train=True))
    next(batches)
    with waiting_is_an_error():
        assert len(list(batches)) > 3

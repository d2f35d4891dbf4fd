"""Memory that is kept between steps is used again, and never while anything refers to it."""

import copy
import gc
import random

import pytest
import torch

import skeletal
from skeletal.engine.kernels import arena

BIG = (1 << 18) // 4


@pytest.fixture(autouse=True)
def fresh():
    """No free blocks of earlier tests."""
    gc.collect()
    arena.release()
    yield
    arena.release()


@pytest.mark.parametrize("shape", [(3,), (BIG,), (2, BIG // 2 + 1), (0, 4), (7, 5, BIG)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_tensors_are_as_asked_for(shape, dtype):
    found = arena.empty(shape, dtype)
    assert found.shape == shape and found.dtype == dtype and found.is_contiguous()
    found.fill_(3)
    assert (found == 3).all()
    assert found.data_ptr() % 64 == 0 or found.numel() == 0


def test_memory_is_used_again():
    first = arena.empty((BIG,), torch.float32)
    address = first.data_ptr()
    second = arena.empty((BIG,), torch.float32)
    assert second.data_ptr() != address
    del first
    third = arena.empty((2, BIG // 2), torch.float32)
    assert third.data_ptr() == address, "of another shape of the same size"
    other = arena.empty((BIG // 2,), torch.float64)
    assert other.data_ptr() not in (address, second.data_ptr())


HOLDERS = {
    "view": lambda x: x[3:5],
    "reshaped": lambda x: x.view(2, -1)[1],
    "detached": lambda x: x.detach(),
    "array": lambda x: x.numpy()[7:],
    "storage": lambda x: x.untyped_storage(),
    "saved for backward": lambda x: torch.ones((), requires_grad=True) * x,
    "parameter": lambda x: torch.nn.Parameter(x),
    "closure": lambda x: lambda: x,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_memory_is_not_used_again_while_anything_refers_to_it(hold):
    tensor = arena.empty((BIG,), torch.float32)
    address = tensor.data_ptr()
    holder = hold(tensor)
    del tensor
    gc.collect()
    assert arena.empty((BIG,), torch.float32).data_ptr() != address
    del holder
    addresses = [arena.empty((BIG,), torch.float32) for _ in range(2)]
    assert address in [tensor.data_ptr() for tensor in addresses]


def test_saved_tensors_survive_until_backward():
    weight = torch.ones((), requires_grad=True)
    kept = arena.empty((BIG,), torch.float32).fill_(2)
    product = (weight * kept).sum()
    del kept
    arena.empty((BIG,), torch.float32).fill_(5)
    product.backward()
    assert weight.grad == 2 * BIG


def test_release_gives_free_blocks_back():
    assert arena.release() == 0
    held = arena.empty((BIG,), torch.float32).fill_(1)
    arena.empty((2 * BIG,), torch.float32)
    assert 8 * BIG <= arena.release() < 8 * BIG + 256, "the free one, not the one in use"
    assert arena.release() == 0
    assert (held == 1).all()
    del held  # lent before the release: it may go or come back, but is not lent twice
    two = [arena.empty((BIG,), torch.float32).fill_(i) for i in range(2)]
    assert [tensor.unique().tolist() for tensor in two] == [[0], [1]]


def test_many_sizes_share_their_memory():
    sizes = random.Random(0).sample(range(BIG, 3 * BIG), 60)
    for size in sizes:
        two = [arena.empty((size,), torch.float32).fill_(i) for i in range(2)]
        assert [tensor.unique().tolist() for tensor in two] == [[0], [1]]
        del two
    address = arena.empty((min(sizes),), torch.float32).data_ptr()
    assert arena.empty((min(sizes) + 1,), torch.float32).data_ptr() == address
    assert arena.release() <= 2 * 4 * (2 * BIG + max(sizes)) + 4 * 64, "two of less than 2 BIG and two of more"


def test_memory_goes_with_the_network():
    model, example = torch.nn.Sequential(torch.nn.Conv2d(4, 16, 3)), torch.randn(16, 4, 40, 40)
    mask = {"0.weight": torch.rand(16, 4, 3, 3) < 0.5}
    for copied in (False, True):
        fast = skeletal.compile(model, mask, example, path="sparse")
        fast = copy.deepcopy(fast) if copied else fast
        fast(example).sum().backward()
        assert sum(map(len, arena._free.values()))
        del fast
        gc.collect()
        assert arena.release() == 0


def test_small_tensors_are_left_to_torch():
    tensor = arena.empty((BIG - 1,), torch.float32)
    del tensor
    assert arena.release() == 0


def test_random_lifetimes_never_share_memory():
    pick = random.Random(0)
    living = []
    seen = set()
    for step in range(400):
        if living and pick.random() < 0.5:
            stays, mark = living.pop(pick.randrange(len(living)))
            assert (stays == mark).all()
        else:
            tensor = arena.empty((pick.choice([1, 2, 3]), BIG), torch.float32).fill_(step)
            seen.add(tensor.data_ptr())
            living.append((pick.choice([lambda x: x, lambda x: x[-1, ::7], lambda x: x.t()])(tensor), step))
            del tensor
    assert all((tensor == mark).all() for tensor, mark in living)
    assert len(seen) < 100, "hardly anything was used again"

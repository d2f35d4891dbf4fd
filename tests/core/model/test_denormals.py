import pytest
import torch

from skeletal.core.model.denormals import flush_denormals

SUPPORTED = torch.set_flush_denormal(False)
pytestmark = pytest.mark.skipif(not SUPPORTED, reason="this processor cannot flush denormals")


def surviving_fraction(n: int = 400_000) -> float:
    """Fraction of denormal products that are not 0; large enough to be shared among all threads."""
    return (torch.full((n,), 1e-30) * torch.full((n,), 1e-9) != 0).double().mean().item()


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_thread_flushes_even_when_the_pool_is_older_and_all_stop_after(threads):
    assert surviving_fraction() == 1
    with flush_denormals():
        assert surviving_fraction() == 0
        assert torch.get_num_threads() == threads
    assert surviving_fraction() == 1


def test_a_caller_who_already_flushes_keeps_flushing():
    torch.set_flush_denormal(True)
    try:
        with flush_denormals(), flush_denormals():
            pass
        assert surviving_fraction(1) == 0
    finally:
        torch.set_flush_denormal(False)


def test_restored_after_an_exception():
    with pytest.raises(KeyError), flush_denormals():
        raise KeyError
    assert surviving_fraction(1) == 1


def test_normal_numbers_are_untouched():
    x = torch.randn(1000) * 1e-3
    with flush_denormals():
        inside = x * x
    assert torch.equal(inside, x * x)

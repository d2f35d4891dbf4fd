"""Maps in bfloat16: the autocast that makes them, and when their bits are the same."""

import pytest
import torch

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def autocast():
    return torch.autocast("cpu", HALF)


def same_bits(one, two):
    """Equal, with NaN at the same places and zeros of either sign alike."""
    assert one.dtype == two.dtype == HALF and one.shape == two.shape
    assert torch.equal(one.isnan(), two.isnan())
    assert torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0)), (one.float() - two.float()).abs().max()

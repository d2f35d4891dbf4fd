"""What is written can be read; files that are damaged or forged are in `tests/robust`."""

import pytest
import torch

import skeletal
from skeletal.core.errors import MaskError


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("w", {"seed": "3"}, "seed = '3', which should be int"),
        ("w", {"data": ["cifar10"]}, "data = .* should be str"),
        ("w", {"biases": 1.0}, "biases = 1.0, which should be int"),
        ("w", {"parameters": 3}, "parameters = 3, which should be at least 12"),
        ("a\nb", {}, "cannot be printed"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, name, metadata, message):
    mask = skeletal.Mask({name: torch.ones(3, 4, dtype=torch.bool)}, metadata)
    with pytest.raises(MaskError, match=f"this mask cannot be saved: .*{message}"):
        mask.save(tmp_path / "mask.safetensors")
    assert not list(tmp_path.iterdir())

"""Layers are exchanged for sparse ones where those can take their place, and only there."""

import torch
from torch import nn

from skeletal.engine.exchange import make_sparse


def test_layers_that_cannot_be_sparse_stay():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding_mode="reflect", padding=1),
        nn.Conv2d(2, 2, 2, padding="same"),
        nn.ConvTranspose2d(2, 2, 2),
        nn.Conv2d(2, 2, 3).bfloat16(),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)),
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 3),
    )
    model[5].register_forward_hook(lambda *_: None)
    masks = {f"{i}.weight": torch.ones(2, 2, 3, 3, dtype=torch.bool) for i in range(7)}
    assert make_sparse(model, masks) == ["6"]
    assert type(model[7]) is nn.Conv2d

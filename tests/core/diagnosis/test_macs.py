"""Multiply-adds, counted by hand."""

import torch
from torch import nn

from skeletal.core.diagnosis.diagnose import diagnose
from skeletal.core.diagnosis.macs import Macs
from skeletal.core.model.weights import prunable_weights
from tests.cases import Everything, Tokens, images, tokens


def test_macs_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 108 weights at 8x8
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),  # 108 at 4x4
        nn.ConvTranspose2d(6, 2, 2, stride=2),  # 48 at 4x4, its input
        nn.Flatten(1, 2),
        nn.Linear(8, 5),  # 40 on 16 rows
    )
    mask = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    for keep in mask.values():
        keep.view(-1)[:3] = True
    forward = [108 * 64, 108 * 16, 48 * 16, 40 * 16]
    kept = [3 * 64, 3 * 16, 3 * 16, 3 * 16]
    expected = Macs(sum(forward), sum(kept), 3 * sum(forward) - forward[0], 3 * sum(kept) - kept[0])
    assert diagnose(model, mask, torch.randn(5, 3, 8, 8)).macs == expected


def test_macs_of_attention_and_of_one_layer_used_twice():
    model = Everything()
    mask = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    for name in ("attention.in_proj_weight", "attention.out_proj.weight", "tied.weight"):
        mask[name].fill_(True)
    rows = []
    hook = model.norm.register_forward_hook(lambda _, __, output: rows.append(output.shape[1]))
    model(images(channels=4)[0][0])
    hook.remove()
    kept = diagnose(model, mask, images(channels=4)[0]).macs.forward_kept
    assert kept == rows[0] * (3 * 144 + 144 + 2 * 144)
    model = Tokens()
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    forward = 5 * (3 * 64 + 64 + 2 * 8 * 16 + 17 * 8)  # an encoder layer must not take its fast path past the hooks
    assert diagnose(model, mask, tokens()[0]).macs == Macs(forward, forward, 3 * forward, 3 * forward)
    tied = diagnose(model, {"embedding.weight": torch.ones(17, 8, dtype=torch.bool)}, tokens()[0])
    assert tied.macs.forward_dense == 5 * 17 * 8  # its other use, the lookup, multiplies nothing

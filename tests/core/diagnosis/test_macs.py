"""Multiply-adds, counted by hand."""

import torch
from torch import nn
from torch.nn import functional as F

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


class CallsFunctions(nn.Module):
    """Layers that are called, or whose weights a function of torch's is called with, once or after the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.head, self.functions = nn.Linear(128, 5), True

    def forward(self, x):
        if self.functions:
            x = F.conv2d(x, self.conv.weight, bias=self.conv.bias, padding=1).relu()
            x = F.conv_transpose2d(input=x, weight=self.up.weight, stride=2).flatten(1)
            return self.head(x) + F.linear(x, self.head.weight)
        x = self.up(self.conv(x).relu()).flatten(1)
        return self.head(x) + self.head(x)


def test_functions_of_torch_count_as_the_layers_that_call_them():
    model, x = CallsFunctions(), torch.randn(2, 3, 4, 4)
    mask = {name: torch.rand_like(weight) < 0.3 for name, weight in prunable_weights(model).items()}
    by_functions = diagnose(model, mask, x).macs
    model.functions = False
    assert by_functions == diagnose(model, mask, x).macs
    assert by_functions.forward_dense == 16 * 108 + 16 * 32 + 2 * 640


def test_a_layer_that_fails_hides_no_function():
    class Falls(nn.Linear):
        def forward(self, x):
            raise NotImplementedError

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Falls(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            try:
                x = self.first(x)
            except NotImplementedError:
                return F.linear(x, self.second.weight)

    model = Network()
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    assert diagnose(model, mask, torch.randn(3, 4)).macs.forward_dense == 8


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

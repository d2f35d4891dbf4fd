"""Small networks put together at random from operations and habits, and the comparison with the masked original."""

import copy
from types import MethodType
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skeletal
from skeletal.core.model.state.random_state import seed_all
from tests.cases import random_mask
from tests.compaction import habits

WIDTH = 4


class Conv(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.conv(x)


class ConvNormRelu(Conv):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x):
        return F.relu(self.norm(self.conv(input=x)))


class Residual(ConvNormRelu):
    def forward(self, x):
        return x + super().forward(x)


class Beside(Conv):
    def forward(self, x):
        return torch.cat([self.conv(x)[:, :2], x[:, 2:]], 1)


class Shared(Conv):
    def forward(self, x):
        return self.conv(torch.tanh(self.conv(x)))


class ReadsWeight(Conv):
    def forward(self, x):
        return F.conv2d(x, self.conv.weight / (1 + self.conv.weight.abs().mean()), self.conv.bias, self.conv.stride, 1)


class WithoutGradients(ConvNormRelu):
    def forward(self, x):
        with torch.no_grad():
            gate = torch.sigmoid(self.conv(x))
        return x * gate


class OnlyForward(ConvNormRelu):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Written(ConvNormRelu):
    def forward(self, x):
        self.seen = super().forward(x)
        return self.seen


class Dropping(Conv):
    def forward(self, x):
        return F.dropout(self.conv(x), 0.3, self.training)


class Hooked(Conv):
    def __init__(self) -> None:
        super().__init__()
        self.conv.register_forward_hook(lambda module, args, out: out * 1.5)


class Reparametrized(Conv):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(self.conv)


class Slow(Conv):
    def __init__(self) -> None:
        super().__init__()
        self.slow = copy.deepcopy(self.conv).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            self.slow.weight.mul_(0.9).add_(self.conv.weight, alpha=0.1)
        return self.conv(x) + self.slow(x)


class Clipped(Conv):
    def forward(self, x):
        with torch.no_grad():
            self.conv.weight.clamp_(-0.2, 0.2)
        return self.conv(x)


class Patched(ConvNormRelu):
    def __init__(self) -> None:
        super().__init__()
        self.conv.forward = MethodType(lambda layer, input: nn.Conv2d.forward(layer, input) * 2, self.conv)


class Inplace(Conv):
    def forward(self, x):
        x = self.conv(x)
        x += 0.1
        return F.relu(x, inplace=True)


class Halved(Conv):
    def forward(self, x):
        one, two = self.conv(x).chunk(2, 1)
        return torch.cat([one * torch.sigmoid(two), two], 1)


PARTS = {
    kind.__name__: kind
    for kind in (
        Conv, ConvNormRelu, Residual, Beside, Shared, ReadsWeight, WithoutGradients, OnlyForward, Written, Dropping,
        Hooked, Reparametrized, Slow, Clipped, Patched, Inplace, Halved,
    )
} | {
    function.__name__: (lambda function=function: habits.Module(function))
    for function in (
        habits.skipping, habits.pythons, habits.storing, habits.straight_through, habits.asking, habits.by_mode,
        habits.asking_autocast, habits.island, habits.warming,
    )
} | {
    "relu": nn.ReLU, "silu": nn.SiLU, "pool": lambda: nn.MaxPool2d(3, 1, 1), "grouped": lambda: Conv(2),
    "group norm": lambda: nn.GroupNorm(2, WIDTH), "identity": nn.Identity,
}  # fmt: skip


class Net(nn.Module):
    """A stem, the parts, and a head; in a Sequential, or called one by one."""

    def __init__(self, parts: list[str], nested: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, WIDTH, 3, padding=1), nn.Linear(WIDTH, 3)
        made = [PARTS[name]() for name in parts]
        self.parts = nn.Sequential(*made) if nested else nn.ModuleList(made)
        self.nested = nested
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):  # else constant channels are 0 before a ReLU, but for rounding
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, 0.1, 0.5)

    def forward(self, x):
        x = self.stem(x)
        if self.nested:
            x = self.parts(x)
        else:
            for part in self.parts:
                x = part(x)
        return self.head(x.mean((2, 3)))


def run(network: nn.Module, seed: int) -> list[Tensor]:
    """Three steps in train mode, then eval mode: outputs and the gradients of the inputs."""
    found, optimizer = [], torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(4):
        network.train(step < 3)
        seed_all(seed + step)
        x = torch.randn(3, 2, 5, 5, dtype=torch.float64).requires_grad_()
        out = network(x)
        found.append(out.detach())
        if step < 3 and out.requires_grad:
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
            found.append(torch.zeros_like(x) if x.grad is None else x.grad)
    network.train()
    return found


def differences(parts: list[str], nested: bool, density: float, seed: int) -> list[str]:
    """What the compact and the compiled network do otherwise than the masked one; nothing, if all is right."""
    seed_all(seed)
    model = Net(parts, nested).double()
    mask = skeletal.Mask(random_mask(model, density))
    masked = copy.deepcopy(model)
    mask.attach(masked)
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    small = skeletal.compact(model, mask, x)
    with patch("skeletal.engine.compile.compact", lambda *_: copy.deepcopy(small)):  # it would be traced anew
        networks = {"compact": small.model} | {
            path: skeletal.compile(model, mask, x, path=path) for path in ("dense", "sparse")
        }
    held = skeletal.Mask(small.mask).attach(small.model)
    expected = run(masked, seed)
    draws = {"Dropping"} & {*parts}  # tensors of other shapes draw other numbers once channels are gone
    wrong = []
    for name, network in networks.items():
        if draws and any(layer.outputs[0] != layer.outputs[1] for layer in small.report.layers):
            continue
        off = [(a - b).abs().max().item() for a, b in zip(expected, run(network, seed), strict=True)]
        size = max(1.0, *(a.abs().max().item() for a in expected))
        if not max(off) < 1e-8 * size:
            wrong.append(f"{name} is off by {max(off):.3g}")
            continue
        dense = (small if name == "compact" else network).to_dense()
        for key, value in masked.state_dict().items():
            if "running" in key:  # a removed channel has no statistics
                continue
            if not torch.allclose(dense.state_dict()[key], value, rtol=1e-7, atol=1e-9):
                wrong.append(f"{name}: {key} differs")
    held.detach()
    return wrong

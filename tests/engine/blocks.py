"""Random small networks out of the blocks that networks are made of, and what exact means for their compact form."""

import copy
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skeletal
from skeletal.compaction.slices import cut, gather
from tests.cases import random_mask

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU,
    nn.ReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Hardswish,
)


def activation(pick: random.Random) -> nn.Module:
    kind = pick.choice(ACTIVATIONS)
    return nn.ReLU(inplace=pick.random() < 0.5) if kind is nn.ReLU else kind()


class Plain(nn.Sequential):
    def __init__(self, pick: random.Random, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        kernel = pick.choice([1, 3])
        mode = pick.choice(["zeros", "zeros", "reflect"])
        layers: list[nn.Module] = [
            nn.Conv2d(
                inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=pick.random() < 0.3, padding_mode=mode
            )
        ]
        if pick.random() < 0.7:
            layers.append(nn.BatchNorm2d(outputs, affine=pick.random() < 0.9))
        if pick.random() < 0.9:
            layers.append(activation(pick))
        super().__init__(*layers)


class Shortcut(nn.Module):
    def __init__(self, pick: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(Plain(pick, inputs, outputs), Plain(pick, outputs, outputs))
        self.shortcut = Plain(pick, inputs, outputs) if inputs != outputs or pick.random() < 0.3 else nn.Sequential()
        self.act = nn.ReLU()
        self.how = pick.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        branch, around = self.branch(x), self.shortcut(x)
        if self.how == 0:
            return self.act(branch + around)
        if self.how == 1:
            return torch.add(0.5 * branch, around)
        return (0.5 * branch).add_(around)


class Dense(nn.Module):
    def __init__(self, pick: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = Plain(pick, inputs, 3)
        self.last = Plain(pick, inputs + 3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([x, self.conv(F.relu(self.norm(x)))], 1))


class Separable(nn.Module):
    def __init__(self, pick: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = 2 * inputs
        self.depthwise = nn.Sequential(nn.Conv2d(inputs, wide, 3, padding=1, groups=inputs, bias=False), nn.ReLU6())
        self.grouped = Plain(pick, wide, 4, groups=2)
        self.pointwise = Plain(pick, 4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.grouped(self.depthwise(x)))


class Excite(nn.Module):
    def __init__(self, pick: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Plain(pick, inputs, outputs)
        self.down, self.up = nn.Linear(outputs, 3), nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels, _, _ = x.size()
        scale = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * scale.view(batch, channels, 1, 1)


class Pieces(nn.Module):
    def __init__(self, pick: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Plain(pick, inputs, 6)
        self.second = Plain(pick, 3, outputs)
        self.third = Plain(pick, outputs + 3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, dim=1)
        return self.third(torch.cat((self.second(left), right), dim=1))


class Unknown(nn.Module):
    """A group norm over all channels: nothing around it may go."""

    def __init__(self, pick: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = Plain(pick, inputs, outputs), nn.GroupNorm(1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Up(nn.Sequential):
    def __init__(self, pick: random.Random, inputs: int, outputs: int) -> None:
        groups = 2 if inputs % 2 == 0 and outputs % 2 == 0 else 1
        super().__init__(
            nn.MaxPool2d(3, 2, 1), nn.ConvTranspose2d(inputs, outputs, 2, 2, groups=groups, bias=pick.random() < 0.5)
        )


class Head(nn.Module):
    def __init__(self, pick: random.Random, inputs: int, size: int) -> None:
        super().__init__()
        self.how = pick.randrange(4)
        self.hidden = nn.Linear(inputs * (1 if self.how < 2 else size * size), 7)
        self.act = activation(pick)
        self.out = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == 0:
            x = x.mean((2, 3))
        elif self.how == 1:
            x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        elif self.how == 2:
            x = x.view(x.size(0), -1)
        else:
            x = x.reshape(-1, self.hidden.in_features)
        return self.out(self.act(self.hidden(x)))


BLOCKS = (Plain, Plain, Shortcut, Shortcut, Dense, Separable, Excite, Pieces, Unknown, Up)


def network(seed: int, blocks: tuple = BLOCKS, depth: int = 4, size: int = 4) -> nn.Module:
    """In double precision; biases, norms and running statistics as new or as of a trained network."""
    pick = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [Plain(pick, 3, 4)]
        channels = 4
        for _ in range(pick.randint(1, depth)):
            outputs = pick.choice([4, 4, 6])
            layers.append(pick.choice(blocks)(pick, channels, outputs))
            channels = outputs
        model = nn.Sequential(*layers, Head(pick, channels, size)).double()
        trained = pick.random() < 0.5
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and trained:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    nn.init.normal_(module.weight)
                    nn.init.normal_(module.bias)
                    module.bias.data[::2] = 0
                    module.bias.requires_grad_(pick.random() < 0.8)
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None and not trained:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        conv, *rest = module if isinstance(module, Plain) else [nn.Identity()]
        if rest and isinstance(rest[0], nn.BatchNorm2d) and conv.bias is not None:
            # In train mode the norm makes rounding errors of a channel that is nothing but its convolution's bias:
            # with a bias of 0 they would fall on either side of an activation's kink, in the masked network, too.
            if rest[0].affine:
                nn.init.uniform_(rest[0].bias, 0.1, 1)
            else:
                nn.init.zeros_(conv.bias).requires_grad_(False)
    return model


def mask_of(model: nn.Module, seed: int) -> skeletal.Mask:
    """Of a random density, with some layers empty."""
    pick = random.Random(seed)
    mask = random_mask(model, pick.choice([0.02, 0.06, 0.15, 0.5]), seed)
    for name in mask:
        if pick.random() < 0.1:
            mask[name].zero_()
    return skeletal.Mask(mask)


def close(one: Tensor, two: Tensor, what: str) -> None:
    assert one.shape == two.shape, what
    # Every batch norm of a constant multiplies rounding errors of the gradient by 1 / sqrt(eps) = 316.
    assert torch.allclose(one, two, rtol=1e-8, atol=1e-7), f"{what}: {(one - two).abs().max()}"


def outcome(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Output and gradient of the input; the parameters get theirs."""
    model.zero_grad(set_to_none=False)
    x = x.clone().requires_grad_()
    output = model(x)
    if output.requires_grad:
        (output.tanh() * torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view(output.shape)).sum().backward()
    return output.detach(), x.grad


def assert_exact(
    model: nn.Module, mask: skeletal.Mask, x: Tensor, steps: int = 3, lr: float = 0.1, multiple_of: int = 1
):
    """The compact network does what the masked one does, before, during and after training."""
    masked = copy.deepcopy(model)
    mask.attach(masked)
    small = skeletal.compact(model, mask, x, multiple_of=multiple_of)
    assert small.report.whole is None, small.report.whole
    read = _read_statistics(masked, x)
    skeletal.Mask(small.mask).attach(small.model)
    pairs = [masked, small.model]
    optimizers = [torch.optim.SGD(m.parameters(), lr, momentum=0.9, weight_decay=0.01) for m in pairs]
    for step in range(steps + 1):
        for training in (False, True):
            for network in pairs:
                network.train(training)
            (output, slope), (small_output, small_slope) = outcome(masked, x), outcome(small.model, x)
            close(small_output, output, f"output, step {step}, training {training}")
            if slope is not None:
                close(torch.zeros_like(slope) if small_slope is None else small_slope, slope, "input gradient")
            _same_gradients(masked, small, step)
            _assert_padding_is_zero(small)
        for name, buffer in small.model.named_buffers():
            norm = name.rpartition(".")[0]
            if norm in read and buffer.dim():
                expected, left = (cut(whole, small.slices[name]) for whole in (masked.get_buffer(name), read[norm]))
                close(buffer[left], expected[left], f"{name}, step {step}")
        if step < steps:
            for optimizer in optimizers:
                optimizer.step()
    _assert_round_trip(masked, mask, small, x)
    return small


def off_the_kinks(model: nn.Module, mask: skeletal.Mask, x: Tensor) -> None:
    """Give a bias to each batch norm's channel that reads anything.

    A constant, normed, is 0 but for rounding: on which side of a ReLU's kink it falls, and with it the gradient, would
    depend on the order in which a CPU adds up. What reads nothing is exactly 0 and stays so.
    """
    masked, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    mask.attach(masked)
    norms = dict(model.named_modules())

    def shift(name: str, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        reads = args[0].detach().transpose(0, 1).flatten(1).ne(0).any(1)
        bias = reads * (0.1 + 0.4 * torch.rand(reads.shape, generator=generator))
        for module in (norm, norms[name]):
            module.bias.data += bias.to(module.bias)

    for name, module in masked.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda norm, args, name=name: shift(name, norm, args))
    with torch.no_grad():
        masked.train()(x)


def _read_statistics(masked: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Which channels of each batch norm are read, all channels of the masked network: those that move the output, from
    wherever they are. The others may be left to fill a group, and nothing is said of them.
    """
    network = copy.deepcopy(masked).eval()
    norms = {name: norm for name, norm in network.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    moved = {}

    def move(norm: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        by = moved[norm] if norm.weight is None else moved[norm] * norm.weight
        return output + by[:, None, None]

    for norm in norms.values():
        norm.register_forward_hook(move)
    read = {name: torch.zeros(norm.num_features, dtype=torch.bool) for name, norm in norms.items()}
    generator = torch.Generator().manual_seed(0)
    for far in (0.0, 1.0, 1.0, 5.0, 5.0):  # so that activations are met open
        for norm in norms.values():
            start = far * torch.randn(norm.num_features, generator=generator, dtype=x.dtype)
            moved[norm] = start.requires_grad_()
        output = network(x)
        if not norms or not output.requires_grad:
            continue
        output = output * torch.randn(output.shape, generator=generator, dtype=x.dtype)
        slopes = torch.autograd.grad(output.sum(), list(moved.values()), allow_unused=True)
        for name, slope in zip(norms, slopes, strict=True):
            if slope is not None:
                read[name] |= slope != 0
    return read


def _same_gradients(masked: nn.Module, small, step: int) -> None:
    left = dict(small.model.named_parameters())
    for name, parameter in masked.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if name in left:
            own = left[name].grad
            close(torch.zeros_like(left[name]) if own is None else own, cut(gradient, small.slices[name]), name)
        removed = torch.ones_like(gradient, dtype=torch.bool)
        if name in left:
            places = [
                torch.arange(size) if index is None else index[index >= 0]
                for size, index in zip(removed.shape, small.slices[name], strict=True)
            ]
            removed[torch.meshgrid(*places, indexing="ij")] = False
        assert not gradient[removed].any(), f"{name} has a gradient where it was removed, step {step}"


def _assert_padding_is_zero(small) -> None:
    """Weights and gradients of channels that fill a width up: to the bit."""
    for name, tensor in small.model.named_parameters():
        for dim, index in enumerate(small.slices[name]):
            if index is not None:
                padding = (index < 0).nonzero().flatten()
                assert not tensor.index_select(dim, padding).any(), name
                if tensor.grad is not None:
                    assert not tensor.grad.index_select(dim, padding).any(), f"gradient of {name}"


def _assert_round_trip(masked: nn.Module, mask: skeletal.Mask, small, x: Tensor) -> None:
    dense = small.to_dense().eval()
    mask.check(dense)
    assert type(dense) is type(masked) and dense.state_dict().keys() == masked.state_dict().keys()
    with torch.no_grad():
        close(dense(x), masked.eval()(x), "dense output")
    state = masked.state_dict()
    small.load_dense(state)
    for name, tensor in gather(state, small.slices).items():
        if name in small.model.state_dict():
            assert torch.equal(small.model.state_dict()[name], tensor)
    for name, tensor in small.dense_state().items():
        assert torch.equal(tensor, state[name]), name

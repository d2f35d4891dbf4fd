"""Residual networks for small images, plain and stable."""

from collections import OrderedDict

from torch import Tensor, nn


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Identity where the shapes allow it, else a 1x1 projection."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()  # the identity, without a node of its own in a torch.fx graph
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, scale: float):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)
        self.relu2 = nn.ReLU()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, H / stride, W / stride), rounded up."""
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        if self.scale != 1:
            branch = self.scale * branch
        return self.relu2(branch + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, scale: float):
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 * width, H / stride, W / stride), rounded up."""
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        if self.scale != 1:
            branch = self.scale * branch
        return self.relu3(branch + self.shortcut(x))


def resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, ...],
    width: int,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    stable: bool = False,
) -> nn.Sequential:
    """A 3x3 stem, stages of residual blocks, a global average pool and one linear layer.

    (N, in_channels, H, W) of any H and W -> logits (N, num_classes). Stage i has width
    `width * 2**i`; every stage but the first halves the image. The source is kuangliu/pytorch-cifar,
    models/resnet.py, which the paper names; there a 4x4 average pool, here a global one, the same on 32x32.

    The stem has stride 1 for Tiny-ImageNet's 64x64, too: the paper says "the same architectures", and the
    authors' published code (naver/force, experiments/models.py) does so.

    With `stable`, every residual branch is multiplied by L**-0.5, L the number of blocks: the Stable
    ResNet of Hayou et al. 2020 (arXiv:2002.08797), "-SR" in the paper's appendix D.
    """
    scale = sum(depths) ** -0.5 if stable else 1.0
    layers = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(in_channels, width, 3, 1, padding=1, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
    )
    channels = width
    for stage, depth in enumerate(depths):
        blocks: list[nn.Module] = []
        for position in range(depth):
            stride = 2 if stage > 0 and position == 0 else 1
            blocks.append(block(channels, width * 2**stage, stride, scale))
            channels = block.expansion * width * 2**stage
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_classes))
    return nn.Sequential(layers)

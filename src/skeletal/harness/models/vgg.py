"""VGG networks for small images: one builder, three layouts."""

from collections import OrderedDict
from typing import Literal

from torch import nn

Layout = tuple[int | Literal["M"], ...]

VGG11: Layout = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512)
VGG19: Layout = (
    64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512,
)  # fmt: skip
MINI: Layout = (32, 32, "M", 64, 64, 64, "M", 128, 128, 128)


def vgg(layout: Layout, *, num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
    """3x3 convolutions without bias, each with batch norm and ReLU; "M" halves the image; one linear layer.

    (N, in_channels, H, W) -> logits (N, num_classes), H and W at least 2 to the number of "M"s; the
    layers are the same for every `image_size`. The source is alecwangcq/GraSP, models/base/vgg.py, which
    the paper names: four max pools, not five, then an average pool, made global here so that 64x64
    images (Tiny-ImageNet) meet the same parameters.
    """
    features: list[nn.Module] = []
    channels = in_channels
    for width in layout:
        if width == "M":
            features.append(nn.MaxPool2d(2))
        else:
            features += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            features=nn.Sequential(*features),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels, num_classes),
        )
    )

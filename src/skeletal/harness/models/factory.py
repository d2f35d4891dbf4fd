"""One way to every network: its name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Literal

import torch
from torch import nn

from skeletal.harness.models import external
from skeletal.harness.models.initialization import kaiming_normal_, seeded
from skeletal.harness.models.lenet import lenet5
from skeletal.harness.models.resnet import BasicBlock, Bottleneck, resnet
from skeletal.harness.models.vgg import MINI, VGG11, VGG19, vgg

Builder = Callable[..., nn.Module]  # takes num_classes, in_channels and image_size by keyword


@dataclass(frozen=True)
class Network:
    """A network of ours: what it is in one line, its builder, the smallest image its pools leave alive."""

    about: str
    build: Builder
    smallest: int = 1


_resnet50 = partial(resnet, Bottleneck, (3, 4, 6, 3), 64)
_resnet20 = partial(resnet, BasicBlock, (3, 3, 3), 16)

NAMES: dict[str, Network] = {
    "resnet50-cifar": Network("ResNet-50 with a 3x3 stem, as in pytorch-cifar; 23.5M parameters", _resnet50),
    "stable-resnet50-cifar": Network(
        "the same, residual branches scaled by 1/4 (Hayou et al. 2020)", partial(_resnet50, stable=True)
    ),
    "resnet20-cifar": Network(
        "ResNet-20 (16-32-64 channels) with 1x1 projection shortcuts; 0.27M parameters", _resnet20
    ),
    "stable-resnet20-cifar": Network("the same, residual branches scaled by 1/3", partial(_resnet20, stable=True)),
    "vgg19-cifar": Network("VGG-19 with batch norm, as in GraSP; 20.0M parameters", partial(vgg, VGG19), 16),
    "vgg11-cifar": Network("VGG-11 with batch norm, built likewise; 9.2M parameters", partial(vgg, VGG11), 16),
    "vgg-mini": Network("8 narrow conv layers for 8x8 to 32x32 images; 0.47M parameters", partial(vgg, MINI), 4),
    "lenet5": Network("LeNet-5 with ReLU and max pooling; 62k parameters at 28x28", lenet5, 12),
}


def _find(name: str, image_size: int) -> tuple[Builder, bool]:
    """The builder of a name, and whether `init="auto"` means Kaiming normal for it."""
    if name in NAMES:
        smallest = NAMES[name].smallest
        if image_size < smallest:
            size = f"{image_size}x{image_size}"
            raise ValueError(f"{name} leaves nothing of {size} images; the smallest is {smallest}x{smallest}")
        return NAMES[name].build, True
    library, _, bare = name.rpartition(":")
    torchvision = external.torchvision_names()
    if library in ("", "torchvision") and bare in torchvision:
        return partial(external.from_torchvision, bare), bare in ("resnet50", "vgg19_bn")
    timm = external.timm_names()
    if library in ("", "timm") and bare.partition(".")[0] in timm:  # a dot starts a pretraining tag
        return partial(external.from_timm, bare), False
    every = dict.fromkeys([*NAMES, *torchvision, *timm])  # some names are in two libraries
    near = get_close_matches(bare, list(every), cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else f"; ours are {', '.join(NAMES)}"
    for names, whose, extra in ((torchvision, "torchvision", "run"), (timm, "timm", "timm")):
        if not names:
            hint += f" For {whose}'s networks: pip install 'skeletal[{extra}]'"
    raise ValueError(f"unknown network {name!r}{hint}")


def create(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    seed: int | None = None,
    init: Literal["auto", "kaiming-normal", "own"] = "auto",
) -> nn.Module:
    """Build a network from its name: (N, in_channels, H, W) -> logits (N, num_classes).

    Names are looked up among ours (`NAMES`), then torchvision's classifiers, then timm's networks;
    a prefix `torchvision:` or `timm:` picks the library. None comes with pretrained weights.

    `image_size` is the side H = W of the images. Our ResNets and VGGs are the same for every size; lenet5 fits its
    first linear layer to it, ViTs and their like their positions.

    `init`: "kaiming-normal" as in the paper's appendix A; "own" leaves what the builder drew; "auto"
    is the first for our networks and torchvision's resnet50 and vgg19_bn, the second for all others.

    Weights are drawn on the CPU, so that a seed means the same weights everywhere, and then moved to
    torch's default device; on the meta device there is nothing to draw. With a seed the global random
    generators stay as they were; with None the weights come from the global one.

    Raises:
        ValueError: unknown name (the nearest ones are named), an image too small for the network's
            pools, `in_channels` other than 3 for torchvision, an unknown `init`, or a count below 1.

    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for what, count in sizes.items():
        if count < 1:
            raise ValueError(f"{what} is at least 1, not {count}")
    if init not in ("auto", "kaiming-normal", "own"):
        raise ValueError(f"init is auto, kaiming-normal or own, not {init!r}")
    build, kaiming = _find(name, image_size)
    device = torch.get_default_device()
    with seeded(seed), torch.device("meta" if device.type == "meta" else "cpu"):
        model = build(**sizes)
        if init == "kaiming-normal" or (init == "auto" and kaiming):
            kaiming_normal_(model)
    return model.to(device)

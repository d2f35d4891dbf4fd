"""One way to every network: its name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Literal

import torch
from torch import nn

from skeletal.core.choices import spelled
from skeletal.core.progress import stage
from skeletal.harness.models import external, own
from skeletal.harness.models.initialization import kaiming_normal_, seeded
from skeletal.harness.models.lenet import lenet5
from skeletal.harness.models.resnet import BasicBlock, Bottleneck, resnet
from skeletal.harness.models.vgg import MINI, VGG11, VGG19, vgg
from skeletal.harness.names import NETWORKS

Builder = Callable[..., nn.Module]  # takes num_classes, in_channels and image_size by keyword


@dataclass(frozen=True)
class Network:
    """A network of ours: what it is in one line, its builder, the smallest image its pools leave alive."""

    about: str
    build: Builder
    smallest: int = 1


_resnet50 = partial(resnet, Bottleneck, (3, 4, 6, 3), 64)
_resnet20 = partial(resnet, BasicBlock, (3, 3, 3), 16)

_BUILT: dict[str, tuple[Builder, int]] = {
    "resnet50-cifar": (_resnet50, 1),
    "stable-resnet50-cifar": (partial(_resnet50, stable=True), 1),
    "resnet20-cifar": (_resnet20, 1),
    "stable-resnet20-cifar": (partial(_resnet20, stable=True), 1),
    "vgg19-cifar": (partial(vgg, VGG19), 16),
    "vgg11-cifar": (partial(vgg, VGG11), 16),
    "vgg-mini": (partial(vgg, MINI), 4),
    "lenet5": (lenet5, 12),
}
NAMES: dict[str, Network] = {name: Network(about, *_BUILT[name]) for name, about in NETWORKS.items()}
LIBRARIES: dict[str, Callable[[], list[str]]] = {
    "torchvision": external.torchvision_names,
    "timm": external.timm_names,
}


def named(name: str) -> str:
    """A network's name as its library has it: in any case, with `-` or `_`; `timm/x` is `timm:x`.

    Raises:
        ValueError: there is none; names the nearest, or says why a function of your own cannot be had.

    """
    if (ours := spelled(name, NAMES)) in NAMES:
        return ours
    if name.partition(":")[0].endswith(".py"):
        raise _of_file(name, own.instead_of_file(name))
    library, bare = _library(name)
    if library is None and own.is_function(name):
        own.function(name)  # refuses one that is not there
        return name
    stem, dot, tag = bare.partition(".")  # a dot starts a pretraining tag
    for whose in LIBRARIES if library is None else [library]:
        names = LIBRARIES[whose]()
        if (found := spelled(stem, names)) in names and not (dot and whose == "torchvision"):
            return f"{library}:{found}{dot}{tag}" if library else f"{found}{dot}{tag}"
    written = own.instead_of_file(name)
    raise _of_file(name, written) if written else _unknown(name, stem)


def _of_file(name: str, written: str | None) -> ValueError:
    return ValueError(f"{name!r} names a file: a network of your own is named by module and function; write {written}")


def _library(name: str) -> tuple[str | None, str]:
    for sign in (":", "/"):
        library, _, bare = name.partition(sign)
        if bare and library.lower() in LIBRARIES:
            return library.lower(), bare
    return None, name


def _unknown(name: str, bare: str) -> ValueError:
    known = {library: names() for library, names in LIBRARIES.items()}
    every = dict.fromkeys([*NAMES, *(name for names in known.values() for name in names)])  # some are in two libraries
    near = get_close_matches(bare.casefold(), every, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else f"; ours are {', '.join(NAMES)}"
    for library, extra in (("torchvision", "run"), ("timm", "timm")):
        if not known[library]:
            hint += f" For {library}'s networks: pip install 'skeletal[{extra}]'"
    return ValueError(f"unknown network {name!r}{hint}")


def _find(name: str, image_size: int) -> tuple[Builder, bool]:
    """The builder of a name, and whether `init="auto"` means Kaiming normal for it."""
    name = named(name)
    if name in NAMES:
        smallest = NAMES[name].smallest
        if image_size < smallest:
            size = f"{image_size}x{image_size}"
            raise ValueError(f"{name} leaves nothing of {size} images; the smallest is {smallest}x{smallest}")
        return NAMES[name].build, True
    library, bare = _library(name)
    if library is None and own.is_function(name):
        return own.builder(name), False
    if library != "timm" and bare in external.torchvision_names():
        return partial(external.from_torchvision, bare), bare in ("resnet50", "vgg19_bn")
    return partial(external.from_timm, bare), False


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

    Names are looked up among ours (`NAMES`), then torchvision's classifiers, then timm's networks, in any case, with
    `-` or `_`; a prefix `torchvision:` or `timm:` picks the library. None comes with pretrained weights. A network of
    your own is `package.module:function`; the function is called with those of `num_classes`, `in_channels` and
    `image_size` that it takes.

    `image_size` is the side H = W of the images. Our ResNets and VGGs are the same for every size; lenet5 fits its
    first linear layer to it, and ViTs and the like fit their positions.

    `init`: "kaiming-normal" as in the paper's appendix A; "own" leaves what the builder drew; "auto"
    is the first for our networks and torchvision's resnet50 and vgg19_bn, the second for all others.

    Weights are drawn on the CPU, so that a seed means the same weights everywhere, and then moved to
    torch's default device; on the meta device there is nothing to draw. With a seed the global random
    generators, also Python's and numpy's, stay as they were; with None the weights come from the global ones.

    Raises:
        ValueError: unknown name (the nearest ones are named), a module or function that is not there, an image too
            small for the network's pools, `in_channels` other than 3 for torchvision, an unknown `init`, or a count
            below 1.

    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for what, count in sizes.items():
        if count < 1:
            raise ValueError(f"{what} is at least 1, not {count}")
    if init not in ("auto", "kaiming-normal", "own"):
        raise ValueError(f"init is auto, kaiming-normal or own, not {init!r}")
    build, kaiming = _find(name, image_size)
    device = torch.get_default_device()
    with stage(f"building {name}"), seeded(seed), torch.device("meta" if device.type == "meta" else "cpu"):
        model = build(**sizes)
        if init == "kaiming-normal" or (init == "auto" and kaiming):
            kaiming_normal_(model)
    return model.to(device)

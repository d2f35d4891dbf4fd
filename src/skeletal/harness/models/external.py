"""Networks of torchvision and timm, by their own names. Both libraries are imported on first use."""

from importlib.util import find_spec
from typing import Any

from torch import nn

from skeletal.core.extras import extra


def torchvision_names() -> list[str]:
    """The classifiers of torchvision; its detectors and segmenters give no logits (N, num_classes).

    None where torchvision is not installed.
    """
    if find_spec("torchvision") is None:
        return []
    with extra("run"):
        import torchvision.models

    return torchvision.models.list_models(module=torchvision.models)


def timm_names() -> list[str]:
    """The networks of timm, without pretraining tags; none where timm is not installed."""
    if find_spec("timm") is None:
        return []
    with extra("timm"):
        import timm

    return timm.list_models()


def from_torchvision(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build a torchvision classifier without pretrained weights: (N, 3, H, W) -> logits (N, num_classes).

    Raises:
        ValueError: `in_channels` is not 3, or the five halvings of a VGG leave nothing of the image.

    """
    with extra("run"):
        import torchvision.models

    if in_channels != 3:
        raise ValueError(f"torchvision's {name} takes images of 3 channels, not {in_channels}")
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # By default these return auxiliary logits, too, and warn when not told how to initialize.
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name.startswith("vgg") and image_size < 32:
        raise ValueError(f"{name} leaves nothing of {image_size}x{image_size} images; the smallest is 32x32")
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


def from_timm(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build a timm network without pretrained weights: (N, in_channels, H, W) -> logits (N, num_classes)."""
    with extra("timm"):
        import timm

    # Networks for one size, such as ViT, must be told it; the others have no such argument.
    fixed = timm.get_pretrained_cfg_value(name, "fixed_input_size")
    options: dict[str, Any] = {"img_size": image_size} if fixed else {}
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options)

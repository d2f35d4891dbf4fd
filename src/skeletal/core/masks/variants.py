"""Masks made from masks: what is left of a choice when part of it is taken back."""

import torch

from skeletal.core.model.tensors import Tensors
from skeletal.core.seeds import seed_of


def shuffled(mask: Tensors, seed: int) -> Tensors:
    """Draw the positions anew within each layer; every layer keeps as many weights as before.

    Only the layer densities of a method's choice survive (as in the sanity check "layerwise shuffling" of Frankle et
    al. 2021, "Pruning Neural Networks at Initialization: Why Are We Missing the Mark?", section 5).

    Args:
        mask: bool tensors by parameter name; not changed.
        seed: of the positions, in the order of the layers.

    """
    generator = torch.Generator().manual_seed(seed_of("shuffle", seed))
    return {
        name: keep.reshape(-1)[torch.randperm(keep.numel(), generator=generator, device="cpu")].view(keep.shape)
        for name, keep in mask.items()
    }

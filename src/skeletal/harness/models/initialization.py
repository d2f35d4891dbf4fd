"""Initial weights: Kaiming normal, and reproducible without touching anyone's random numbers."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def kaiming_normal_(model: nn.Module) -> None:
    """Draw every conv and linear weight from N(0, 2 / fan_in), He et al. 2015, as the paper's appendix A.

    Biases become 0, norm layers weight 1 and bias 0. Parameters of other modules (embeddings, class
    tokens, attention projections) keep what they have.
    """
    for module in model.modules():
        if isinstance(module, _ConvNd | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm):
            if module.weight is not None:
                nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@contextmanager
def seeded(seed: int | None) -> Generator[None, None, None]:
    """Inside, CPU random numbers follow from `seed`; afterwards, the global generator is as it was.

    `None` changes nothing: the global generator is used, and advances.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        yield

"""Initial weights: Kaiming normal, and reproducible without touching anyone's random numbers."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from skeletal.core.model.state.random_state import RandomState, seed_all


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
    """Inside, random numbers of torch's CPU generator, Python and numpy follow from `seed`; afterwards, the global
    generators are as they were.

    `None` changes nothing: the global generators are used, and advance.
    """
    if seed is None:
        yield
        return
    before = RandomState()
    seed_all(seed)
    try:
        yield
    finally:
        before.restore()

"""What is benchmarked: a network by its name, and a batch of noise."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skeletal.core.masks.mask import Mask
from skeletal.core.pruning.methods import METHODS
from skeletal.core.pruning.prune import prune
from skeletal.harness.config import Setup
from skeletal.harness.data import SPECS
from skeletal.harness.models.initialization import seeded
from skeletal.harness.runs.finding import create_model


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A network and a batch; small enough to be handed to another process."""

    model: str
    data: str = "cifar10"
    """a data set whose image size, channels and classes are taken; the images are noise"""
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it has to be at least 1")

    def network(self) -> nn.Module:
        """The network at its initialization."""
        return create_model(Setup(model=self.model, data=self.data, seed=self.seed), SPECS[self.data])

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images of standard normal noise (N, C, H, W) and random classes (N,)."""
        spec = SPECS[self.data]
        with seeded(self.seed):
            images = torch.randn(self.batch_size, spec.channels, spec.image_size, spec.image_size)
            return images, torch.randint(spec.num_classes, (self.batch_size,))

    def mask(self, density: float, method: str = "force", steps: int = 15) -> Mask:
        """A mask found on this batch of noise: for its speed, not for its accuracy."""
        several = None if METHODS[method].one_shot else steps
        batches = [self.batch()]
        mask = prune(
            self.network(), batches, density=density, method=method, steps=several, on_collapse="keep",
            precision="bfloat16", seed=self.seed,
        )  # fmt: skip
        mask.metadata |= {"network": self.model, "data": f"noise of the shape of {self.data}"}
        return mask

"""The learning rate of each epoch."""

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from skeletal.harness.config import Training

WARM_UP = 0.25
"""fraction of a one-cycle training in which the rate rises"""


def milestones(training: Training) -> list[int]:
    """Epochs before which the learning rate is divided by 10: 150 and 250 for the paper's 350 epochs.

    Of two that round to the same epoch one counts.
    """
    fractions, epochs = training.milestones or (), training.epochs or 0
    return sorted({round(f * epochs) for f in fractions} - {0})  # a step at 0 would leave no epoch at `lr`


def one_cycle(epoch: int, epochs: int) -> float:
    """The share of the highest rate that an epoch, counted from 0, trains at: that of its middle (Smith 2018).

    It rises evenly from 0 for the first quarter of the training, and falls evenly to 0 in the rest.
    """
    middle = (epoch + 0.5) / epochs
    return min(middle / WARM_UP, (1 - middle) / (1 - WARM_UP))


def scheduler(optimizer: torch.optim.Optimizer, training: Training) -> LRScheduler:
    """Sets the rate of the next epoch whenever one has ended."""
    if training.decay == "steps":
        return MultiStepLR(optimizer, milestones(training), gamma=0.1)
    epochs = training.epochs or 0
    return LambdaLR(optimizer, lambda epoch: one_cycle(epoch, epochs))

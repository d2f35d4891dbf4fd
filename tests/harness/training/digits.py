"""A training on digits of our own making, which several processes divide among them."""

from pathlib import Path

import torch
from torch import nn

from skeletal.harness.config import Training
from skeletal.harness.data.memory import Arrays, Part, assemble
from skeletal.harness.data.specs import SPECS
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.train import train

SPEC = SPECS["digits"]
# 81 examples train: batches of 20, 20, 20, 20 and 1, of which rank 1 has nothing.
TRAINING = Training(
    epochs=3, batch_size=20, lr=0.05, momentum=0.9, weight_decay=5e-4, milestones=(0.5,), decay="steps", engine="dense"
)


def arrays():
    g = torch.Generator().manual_seed(0)
    labels = [torch.arange(n) % 10 for n in (90, 31)]
    images = [torch.randint(0, 80, (len(y), 1, 8, 8), generator=g) + 17 * y.view(-1, 1, 1, 1) for y in labels]
    return [Part(x.byte(), y) for x, y in zip(images, labels, strict=True)]


def data(*_, **__):
    return assemble(Arrays(*arrays(), tuple("0123456789")), SPEC, validation=0.1, seed=0)


def net(*_, **__):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )  # fmt: skip


def trained(folder=None, model=None, training=TRAINING, mask=None, source=None):
    model = model or net()
    result = train(
        model, source or data(), training, mask=mask, folder=folder and RunFolder.open(Path(folder), "run", {}),
        device="cpu", progress=False,
    )  # fmt: skip
    return model, result

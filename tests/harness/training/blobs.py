"""Blobs to train on in a moment, two networks, a mask that counts who asks, and when two runs are the same."""

import random
from types import SimpleNamespace

import numpy
import torch
from torch import nn

from skeletal.harness.config import Training
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.train import train

EXAMPLES, CLASSES, BATCH = 70, 3, 16  # five batches, the last of 6
TRAINING = Training(
    epochs=3,
    batch_size=BATCH,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=(1 / 3, 2 / 3),
    decay="steps",
    engine="dense",
)


class Split:
    """Blobs, shuffled as a function of (seed, epoch); `before[epoch, batch]` is called before that batch."""

    def __init__(self, size, shape, before=None):
        g = torch.Generator().manual_seed(size)
        self.y = torch.arange(size) % CLASSES
        self.x = torch.randn(size, *shape, generator=g) + self.y.view(-1, *[1] * len(shape))
        self.before = before or {}

    def __len__(self):
        return len(self.y)

    def batches(self, batch_size, *, train, seed=0, epoch=0, start=0, drop_last=False):
        g = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(self), generator=g) if train else torch.arange(len(self))
        return Pass(self, order.split(batch_size) if len(self) else (), epoch, start)


class Pass:
    def __init__(self, split, order, epoch, start):
        self.split, self.order, self.epoch, self.start = split, order, epoch, start

    def __len__(self):
        return len(self.order) - self.start

    def __iter__(self):
        for batch, index in enumerate(self.order):
            if batch >= self.start:
                self.split.before.pop((self.epoch, batch), lambda: None)()
                yield self.split.x[index], self.split.y[index]


def blobs(shape=(8,), before=None, validation=20):
    return SimpleNamespace(
        num_classes=CLASSES,
        fingerprint=f"blobs of {shape}",
        blank=lambda: torch.zeros(1, *shape),
        train=Split(EXAMPLES, shape, before),
        validation=Split(validation, shape),
        test=Split(31, shape),
    )


def mlp():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES))


class PyDrop(nn.Module):
    """Scales at random, by Python's and numpy's generators, as stochastic depth is often written."""

    def forward(self, x):
        return x * random.choice((0.5, 1.5)) + 0.1 * numpy.random.randn() if self.training else x


class Counts(nn.Module):
    """Scales by the number of steps so far, of which it keeps a record that no checkpoint holds."""

    def __init__(self, record=False):
        super().__init__()
        self.n, self.record = 0, [] if record else None

    def forward(self, x):
        if self.training:
            self.n += 1
            if self.record is not None:
                self.record.append(self.n)
        return x * (1 + 0.01 * self.n)


def convnet():
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, CLASSES),
    )  # fmt: skip


class HalfMask(dict):
    """Holds the even columns of the first layer of `mlp` at 0, and counts who asks."""

    digest = "half"

    def __init__(self):
        super().__init__({"0.weight": (torch.arange(8) % 2 == 1).expand(16, 8)})
        self.checks = 0

    def attach(self, model, optimizer=None):
        assert optimizer is not None and not optimizer.state
        self._zero(model)
        hook = optimizer.register_step_post_hook(lambda *_: self._zero(model))
        return SimpleNamespace(detach=hook.remove)

    @torch.no_grad()
    def _zero(self, model):
        model[0].weight[:, ::2] = 0

    def check(self, model):
        self.checks += 1
        assert not model[0].weight[:, ::2].any()


def folder(tmp_path, name="run"):
    return RunFolder.open(tmp_path, name, {})


def run(model, data, training=TRAINING, **options):
    return train(model, data, training, **{"device": "cpu", "progress": False, **options})


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same(a, b):
    """Equality to the bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b

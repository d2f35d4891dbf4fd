"""What a pattern costs in accuracy and gains in time: masks of every pattern at equal density, trained and timed.

    nice python benchmarks/patterns.py --data-dir DIR [--densities 0.1 0.05] [--seeds 0 1] [--epochs 4]

Accuracy: a small VGG (16 to 64 channels) on CIFAR-10 images averaged to 16x16, pruned with FORCE and trained by SGD
along half a cosine, with flips; each number is the mean of the seeds, with the smallest and the largest. Time: a
training step of vgg-mini on 32x32 images, batch 32, dense and masked (torch), compacted (torch, on what is left), and
by the sparse engine; all ways of all masks take turns in one process, on one thread, and the least CPU time counts, so
that a busy machine disturbs little. Prints two Markdown tables.
"""

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional

import skeletal
from skeletal.core.model.denormals import flush_denormals
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness import data as data_sets
from skeletal.harness.bench import Setting
from skeletal.harness.bench.contest import interleaved
from skeletal.harness.bench.contestants import masked_copy, stepper
from skeletal.harness.models.initialization import kaiming_normal_, seeded
from skeletal.harness.models.vgg import vgg
from skeletal.harness.store.environment import environment

PATTERNS = (None, "2:4", "fan-in", "4x4", "channels")
LAYOUT = (16, 16, "M", 32, 32, "M", 64, 64)
BATCH, STEPS = 64, 20
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


def small_images(folder, train, test):
    """The first images of both splits, 3x16x16, normalised, and their classes."""
    data = data_sets.load("cifar10", folder)
    found = []
    for split, count in ((data.train, train), (data.test, test)):
        images, classes = zip(*islice(split.batches(500, train=False), count // 500), strict=True)
        found.append((functional.avg_pool2d(torch.cat(images), 2), torch.cat(classes)))
    return found


def network(seed):
    """The small VGG at its initialization."""
    with seeded(seed):
        model = vgg(LAYOUT, num_classes=10, in_channels=3, image_size=16)
        kaiming_normal_(model)
    return model


def batches(split, seed):
    """Shuffled batches of one epoch, half of the images flipped."""
    images, classes = split
    generator = torch.Generator().manual_seed(seed)
    for places in torch.randperm(len(images), generator=generator).split(BATCH):
        flips = torch.rand(len(places), generator=generator) < 0.5
        x = images[places]
        yield torch.where(flips[:, None, None, None], x.flip(3), x), classes[places]


def accuracy(train, test, seed, epochs, density, pattern):
    """Test accuracy in percent, the mask's true density and whether it leaves a path; density 1 is dense."""
    model, mask = network(seed), None
    if density < 1:
        found = list(batches(train, seed))[:STEPS]
        mask = skeletal.prune(
            model, found, density=density, method="force", steps=STEPS, pattern=pattern, on_collapse="keep", seed=seed
        )
        mask.attach(model)
        if pattern == "channels":  # the same network, narrower
            model = skeletal.compact(model, mask, found[0]).model
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    steps = epochs * -(-len(train[0]) // BATCH)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        model.train()
        for x, y in batches(train, 1000 * seed + epoch):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            falling.step()
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(*(t.split(500) for t in test), strict=True))
    return 100 * right / len(test[0]), 1.0 if mask is None else mask.density


def accuracies(arguments):
    """The table of accuracies."""
    train, test = small_images(arguments.data_dir, arguments.images, 5000)

    def cell(density, pattern):
        found = [accuracy(train, test, seed, arguments.epochs, density, pattern) for seed in arguments.seeds]
        top = [one for one, _ in found]
        true = "" if density == 1 else f", density {sum(one for _, one in found) / len(found):.4f}"
        return f"{sum(top) / len(top):.1f} ({min(top):.1f} to {max(top):.1f}){true}"

    print(f"\ndense: {cell(1, None)}\n\n{markdown_head(['pattern', *map(str, arguments.densities)])}", flush=True)
    for pattern in PATTERNS:
        print(markdown_row([pattern or "none", *(cell(d, pattern) for d in arguments.densities)]), flush=True)


def times(density, rounds):
    """The table of training steps."""
    setting = Setting(model="vgg-mini", batch_size=32)
    model, (inputs, targets) = setting.network(), setting.batch()
    ways, parameters = {}, {}
    for pattern in PATTERNS:
        mask = skeletal.prune(
            model, [(inputs, targets)], density=density, method="force", steps=5, pattern=pattern, on_collapse="keep"
        )
        small = skeletal.compact(model, mask, inputs)
        parameters[pattern] = sum(parameter.numel() for parameter in small.model.parameters())
        skeletal.Mask(small.mask).attach(small.model)
        ways[pattern, "compacted"] = stepper(small.model, inputs, targets, about="compacted")
        fast = skeletal.compile(model, mask, inputs, path="sparse")
        ways[pattern, "sparse"] = stepper(fast, inputs, targets, about="sparse")
        ways[pattern, "masked"] = stepper(masked_copy(model, mask), inputs, targets, about="masked")
    found = interleaved({key: way.train for key, way in ways.items()}, rounds, time.thread_time)
    columns = ("masked", "compacted", "sparse")
    print(f"\n{markdown_head(['pattern', 'parameters left', *(f'{way}, ms' for way in columns)])}")
    for pattern in PATTERNS:
        ms = [f"{1000 * min(found[pattern, way]):.0f}" for way in columns]
        print(markdown_row([pattern or "none", f"{parameters[pattern]:,}", *ms]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    where = environment()
    print(", ".join(f"{key} {where[key]}" for key in ("cpu", "versions", "date")))
    print(f"1 thread, seeds {arguments.seeds}, {arguments.epochs} epochs of {arguments.images:,} images")
    with flush_denormals():
        times(arguments.densities[0], arguments.rounds)
        accuracies(arguments)
    print(f"\n{time.process_time():.0f} s of CPU time")


if __name__ == "__main__":
    main()

"""Training batches of CIFAR-10 shape per second on one core: ours, and torchvision image by image, in one run.

    python benchmarks/augmentation.py [--repeats 7]

Ours is a whole batch: gather from 50,000 uint8 images, crop from a border of 4, flip, normalize to float32.
Theirs is RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize on ready PIL images, stacked into
batches of the same size: neither includes decoding. The two take turns, so that a busy machine slows both.
"""

import argparse
from datetime import date
from itertools import islice
from statistics import median

import torch
import torchvision
from PIL import Image
from torchvision import transforms as T

from skeletal.harness.bench.contest import interleaved
from skeletal.harness.data.memory import MemorySplit, Part
from skeletal.harness.data.specs import SPECS
from skeletal.harness.store.environment import cpu_model

BATCH, OURS, THEIRS = 128, 200, 10  # batch size; batches per timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)

    spec = SPECS["cifar10"]
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    split = MemorySplit(Part(images, torch.zeros(50_000, dtype=torch.int64)), torch.arange(50_000), spec)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[: BATCH * THEIRS]]
    transform = T.Compose(
        [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(spec.mean, spec.std)]
    )

    def ours() -> None:
        for _ in islice(split.batches(BATCH, train=True, epoch=1), OURS):
            pass

    def theirs() -> None:
        for k in range(THEIRS):
            torch.stack([transform(picture) for picture in pictures[k * BATCH : (k + 1) * BATCH]])

    seconds = interleaved({"ours": ours, "theirs": theirs}, repeats)
    rates = [
        (BATCH * OURS / one, BATCH * THEIRS / other)
        for one, other in zip(seconds["ours"], seconds["theirs"], strict=True)
    ]
    print(
        f"{date.today()}  {cpu_model()}, one thread; torch {torch.__version__}, torchvision {torchvision.__version__}"
    )
    for name, values in zip(("batched uint8", "torchvision, per image"), zip(*rates, strict=True), strict=True):
        span = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"{name:24s}{median(values):10,.0f} images/s   (median of {repeats}, {span})")
    print(f"{'ratio':24s}{median(a / b for a, b in rates):10.1f}")


if __name__ == "__main__":
    main()

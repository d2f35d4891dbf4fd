"""How micro-batches affect masks through batch norm: layer densities of FORCE masks, batches whole and in pieces.

    python benchmarks/micro_batch.py --data-dir D [--model resnet20-cifar] [--steps 20] [--density 0.02]

Each mask is compared with that of whole batches: overlap (Jaccard), and by how much the layers' densities differ, mean
and largest, in percent. To judge that, the same numbers are given for other batches of the same data.
"""

import argparse
import time
from pathlib import Path
from statistics import mean

import torch

import skeletal
from skeletal.core.masks.compare import overlap
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness import data as data_sets

BATCH = 128


def compared(mask: skeletal.Mask, other: skeletal.Mask) -> list[str]:
    densities = [(float(mask[name].float().mean()), float(other[name].float().mean())) for name in mask]
    changes = [100 * abs(ours - theirs) / ours for ours, theirs in densities if ours > 0]
    return [f"{overlap(mask, other):.2f}", f"{mean(changes):.1f}", f"{max(changes):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--model", default="resnet20-cifar")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--density", type=float, default=0.02)
    chosen = parser.parse_args()
    loaded = data_sets.load(chosen.data, chosen.data_dir)
    model = skeletal.models.create(
        chosen.model, num_classes=loaded.num_classes, in_channels=loaded.channels, image_size=loaded.image_size
    )

    def found(micro_batch: int | None = None, seed: int = 0, bn_mode: str = "train") -> skeletal.Mask:
        batches = data_sets.Stream(loaded.train, BATCH, seed)
        settings = dict(density=chosen.density, steps=chosen.steps, on_collapse="keep", bn_mode=bn_mode)
        return skeletal.prune(model, batches, micro_batch=micro_batch, **settings)

    whole = found()
    print(f"{chosen.model}, {chosen.data}, FORCE, {chosen.steps} steps, density {chosen.density}, {torch.__version__}")
    print(markdown_head(["batches of 128", "overlap", "layer densities differ, mean %", "largest %", "seconds"]))
    others = {f"pieces of {size}": dict(micro_batch=size) for size in (64, 32, 16, 8)}
    for name, options in (others | {f"whole, other batches ({seed})": dict(seed=seed) for seed in (1, 2)}).items():
        start = time.process_time()
        line = compared(whole, found(**options))
        print(markdown_row([name, *line, f"{time.process_time() - start:.1f}"]), flush=True)


if __name__ == "__main__":
    main()

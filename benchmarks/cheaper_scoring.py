"""Is a mask scored in bfloat16 as good as one scored in float32? The yardstick is what other data changes.

    python benchmarks/cheaper_scoring.py --data-dir DIR [--model vgg19-cifar] [--steps 20] [--seeds 3] [--json FILE]
    python benchmarks/cheaper_scoring.py --data-dir DIR --model lenet5 --density 0.05 --train 5

FORCE masks are chaotic: one weight more or less at a step, other data or bfloat16 each lead to another mask, so
overlap says nothing. Masks are judged by layer densities, effective density, and the masked network's FORCE saliency
(Eq. 6) and gradient norm on batches that no mask was found on, all in float32; with `--train`, also by the accuracy
after that many epochs.
Initial weights are the same throughout; seeds only vary the batches that masks are found on.
"""

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from fidelity import layer_change, quality

import skeletal
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.runs.experiment import train_masked
from skeletal.harness.runs.finding import create_model, find_mask, load_data


def judge(setup, data, pruning, seed, training):
    """A mask and its numbers."""
    model = create_model(setup, data)
    start = time.perf_counter()
    mask = find_mask(model, data, replace(setup, seed=seed), pruning, progress=False)
    seconds = time.perf_counter() - start
    found = skeletal.diagnose(model, mask, torch.zeros(2, data.channels, data.image_size, data.image_size))
    saliency, norm = quality(model, mask, data)
    numbers = {"effective density": found.effective_density, "saliency": saliency, "gradient norm": norm}
    if training is not None:
        with tempfile.TemporaryDirectory() as root:
            mask.save(Path(root) / "mask.safetensors")
            _, result = train_masked(setup, training, Path(root) / "mask.safetensors", root=Path(root), progress=False)
        numbers["test top-1"] = result["test"]["top1"]
    return mask, numbers | {"seconds": seconds}


def spread(masks):
    """How much layer densities differ between masks, as a factor: the mean over pairs."""
    return statistics.mean(layer_change(one, two) for one, two in masks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="vgg19-cifar")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, metavar="EPOCHS")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", skeletal.CollapseWarning)  # the effective density says it
    warnings.filterwarnings("ignore", "the mask was found with seed")  # of its batches; the weights are the same

    setup = Setup(model=arguments.model, data=arguments.data, data_dir=arguments.data_dir, device="cpu")
    training = None if arguments.train is None else resolve(Training(epochs=arguments.train), "quick")
    data = load_data(setup)
    print(
        f"{arguments.model}, {arguments.data}, FORCE, density {arguments.density:g}, {arguments.steps} steps of 1 x 128"
    )
    print(f"images, initial weights of seed 0; torch {torch.__version__}, {torch.get_num_threads()} threads,", end=" ")
    print(f"{platform.machine()}, {date.today()}\n")
    found = {}
    for seed, precision in itertools.product(range(arguments.seeds), ("float32", "bfloat16")):
        pruning = Pruning(
            density=arguments.density, steps=arguments.steps, batches_per_step=1, prune_batch_size=128,
            precision=precision,
        )  # fmt: skip
        found[precision, seed] = judge(setup, data, resolve(pruning, "quick"), seed, training)
    masks = {key: mask for key, (mask, _) in found.items()}
    names = list(found["float32", 0][1])
    print(markdown_head(["scored in", *names]))
    for precision in ("float32", "bfloat16"):
        rows = [numbers for (which, _), (_, numbers) in found.items() if which == precision]
        cells = [f"{statistics.mean(v):.4g} ({min(v):.4g}-{max(v):.4g})" for v in ([r[n] for r in rows] for n in names)]
        print(markdown_row([precision, *cells]))
    seeds = range(arguments.seeds)
    others = list(itertools.combinations(seeds, 2))
    changes = {
        "bfloat16 in place of float32, same data": [(masks["float32", s], masks["bfloat16", s]) for s in seeds],
        "other data, both float32": [(masks["float32", a], masks["float32", b]) for a, b in others],
        "other data, both bfloat16": [(masks["bfloat16", a], masks["bfloat16", b]) for a, b in others],
    }
    print("\n" + markdown_head(["change", "layer densities differ by a factor of"]))
    for change, pairs in changes.items():
        print(markdown_row([change, f"{spread(pairs):.3f}"]))
    if arguments.json:
        numbers = [{"precision": p, "seed": s, **found[p, s][1]} for p, s in found]
        arguments.json.write_text(json.dumps({"runs": numbers, "layers": {c: spread(p) for c, p in changes.items()}}))


if __name__ == "__main__":
    main()

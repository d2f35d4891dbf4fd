"""What the options that differ between the paper, its official code and others do to a mask of a real network.

    python benchmarks/fidelity.py --data-dir DIR [--model vgg19-cifar] [--data cifar10] [--method force] [--steps 15]

Prints a Markdown table. Each row changes one option; the last rows, with other data and other initial weights, show how
much change means nothing. Columns: overlap (Jaccard) with the first row's mask, which is small for nested methods
whatever changes; the mean change of the layers' densities, as a factor; effective density; FORCE saliency (Eq. 6) and
gradient norm of the masked network on four batches that no mask was found on.
"""

import argparse
import math
import platform
import time
import warnings
from datetime import date
from pathlib import Path

import torch

import skeletal
from skeletal.core.model.batches import Cycle
from skeletal.core.model.gradients import Derivatives
from skeletal.core.model.preserve import preserve_model
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.data import Stream
from skeletal.harness.runs.finding import create_model, find_mask, load_data

ROWS = {
    "paper: cross-entropy, train mode, plain batches": {},
    "nll on raw logits (official code)": {"loss": "nll"},
    "eval mode (Synaptic-Flow)": {"bn_mode": "eval"},
    "class-balanced batches (GRASP's code)": {"sampling": "balanced"},
    "mean of absolute values (PySNIP)": {"average": "absolute"},
    "linear schedule": {"schedule": "linear"},
    "other data (seed of the batches)": {"data_seed": 1},
    "other initial weights": {"seed": 1},
}


def layer_change(one, two):
    """Geometric mean over layers of how much densities differ, as a factor of at least 1; without empty layers."""
    pairs = [(int(one[name].sum()), int(two[name].sum())) for name in one]
    logs = [abs(math.log(a / b)) for a, b in pairs if a and b]
    return math.exp(sum(logs) / len(logs)) if logs else float("nan")


def quality(model, mask, data):
    """FORCE saliency and gradient norm of the masked network on held-out draws."""
    weights = {name: model.get_parameter(name).detach() * keep for name, keep in mask.items()}
    stream = Cycle(Stream(data.train, 128, seed=12345))
    with preserve_model(model, training=True, seed=0):
        gradient, _ = Derivatives(model, stream, 4).gradient(weights)
    saliency = sum(float((weights[name] * g).abs().sum()) for name, g in gradient.items())
    norm = sum(float((g * mask[name]).square().sum()) for name, g in gradient.items()) ** 0.5
    return saliency, norm


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="vgg19-cifar")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--method", default="force")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batches-per-step", type=int, default=2)
    parser.add_argument("--density", type=float, default=0.01)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", skeletal.CollapseWarning)  # a column says it

    data = load_data(Setup(data=arguments.data, data_dir=arguments.data_dir))
    print(f"{arguments.model}, {arguments.data}, {arguments.method}, density {arguments.density:g},", end=" ")
    print(f"{arguments.steps or 'default'} steps of {arguments.batches_per_step} x 128 images, seed 0;", end=" ")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {date.today()}\n")
    columns = "change, path, empty layers, overlap, layer densities, effective density, saliency, gradient norm, s"
    print(markdown_head(columns.split(", "), left=2))
    first = None
    for name, change in ROWS.items():
        setup = Setup(model=arguments.model, data=arguments.data, seed=change.get("seed", 0))
        options = {key: value for key, value in change.items() if key not in ("seed", "data_seed")}
        pruning = resolve(
            Pruning(
                method=arguments.method,
                density=arguments.density,
                steps=arguments.steps,
                batches_per_step=arguments.batches_per_step,
                **options,
            ),
            "cifar10",
        )
        if arguments.method == "snip" and "schedule" in options:
            continue
        model = create_model(setup, data)
        start = time.perf_counter()
        drawn = Setup(model=setup.model, data=setup.data, seed=change.get("data_seed", setup.seed))
        mask = find_mask(model, data, drawn, pruning, progress=False)
        seconds = time.perf_counter() - start
        found = skeletal.diagnose(model, mask, torch.zeros(2, data.channels, data.image_size, data.image_size))
        saliency, norm = quality(model, mask, data)
        if first is None:
            first = mask
        both = sum(int((mask[layer] & first[layer]).sum()) for layer in mask)
        overlap = both / (mask.kept + first.kept - both)
        path = "yes" if found.connected else "no"
        cells = [name, path, len(mask.empty_layers), f"{overlap:.2f}", f"x{layer_change(mask, first):.2f}"]
        cells += [f"{found.effective_density:.5f}", f"{saliency:.2e}", f"{norm:.2e}", f"{seconds:.0f}"]
        print(markdown_row(cells), flush=True)


if __name__ == "__main__":
    main()

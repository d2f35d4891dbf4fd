"""What each method leaves of each layer: one mask per method and network, and the figures of docs/methods.

    python benchmarks/method_layers.py --data-dir DIR --model vgg19-cifar --out masks [--methods force snip ...]
    python benchmarks/method_layers.py --out masks --draw docs/img/methods

The first command finds the masks one by one, saves each in the folder `masks` and skips those already there, so you can
stop it at any time. Methods that collapse are filled up by position and shown all the same. It prints a Markdown table
of everything in the folder; seconds are the median of a run's steps, drawing batches included. The second command draws
one figure per method from the saved masks.
"""

import argparse
import inspect
import statistics
import time
import warnings
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image

import skeletal
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.config import Setup
from skeletal.harness.data import Stream
from skeletal.harness.output.figures import save_figure
from skeletal.harness.output.palette import curve_style
from skeletal.harness.runs.finding import create_model, load_data

MODELS = {
    "vgg19-cifar": "VGG-19",
    "resnet50-cifar": "ResNet-50",
    "vgg-mini": "VGG-mini",
    "resnet20-cifar": "ResNet-20",
}
MANY = 60  # batches of the one-shot methods' MB variants: as many as FORCE sees in its steps
ROWS = {name: {"method": name} for name in skeletal.METHODS}
ROWS |= {"snip-mb": ROWS["snip"] | {"batches_per_step": MANY}, "grasp-mb": ROWS["grasp"] | {"batches_per_step": MANY}}
# What shares a figure: a method with its variant on many batches.
TOGETHER = {"snip": ("snip", "snip-mb"), "grasp": ("grasp", "grasp-mb")}


def find(model_name, row, data, arguments):
    """One mask, with its seconds, its passes and what became of the network in its metadata."""
    options = dict(ROWS[row])
    if arguments.steps and not skeletal.METHODS[options["method"]].one_shot:
        options["steps"] = arguments.steps
    if arguments.batches_per_step and "batches_per_step" in options:
        options["batches_per_step"] = arguments.batches_per_step
    if arguments.precision != "float32":
        options["precision"] = arguments.precision
    model = create_model(Setup(model=model_name, data=data.name, seed=0), data).to(arguments.device)
    ticks = [time.perf_counter()]
    mask = skeletal.prune(
        model,
        Stream(data.train, 128, seed=0),
        density=arguments.density,
        on_collapse="keep",
        seed=0,
        on_step=lambda step: ticks.append(time.perf_counter()),
        **options,
    )
    found = skeletal.diagnose(
        model, mask, torch.zeros(2, data.channels, data.image_size, data.image_size, device=arguments.device)
    )
    seconds = statistics.median(after - before for before, after in pairwise(ticks))
    mask.metadata |= {"seconds_per_step": round(seconds, 3), "threads": torch.get_num_threads()}
    mask.metadata |= {"network": model_name, "data": data.name, "precision": arguments.precision}
    mask.metadata |= {"device": device_name(arguments.device)}
    mask.metadata |= {"effective_density": found.effective_density, "row": row}
    return mask


def device_name(device):
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def saved(folder, model_name):
    """The masks of one network in a folder, by row, in the order of the table of methods."""
    paths = {row: folder / f"{model_name}-{row}.safetensors" for row in ROWS}
    return {row: skeletal.Mask.load(path) for row, path in paths.items() if path.exists()}


def print_table(masks):
    columns = ["method", "steps", "batches a step", "precision", "s per step", "path", "empty layers"]
    columns += ["filled in at the last step", "effective density"]
    print(markdown_head(columns))
    for row, mask in masks.items():
        about = mask.metadata
        last = sum(fill["weights"] for fill in about["filled"] if fill["step"] == about["steps"])
        cells = [row, about["steps"], about["batches_per_step"], about["precision"]]
        cells += [f"{about['seconds_per_step']:.1f}"]
        cells += ["yes" if about["connected"] else "no", len(mask.empty_layers), f"{last:,}"]
        cells += [f"{about['effective_density']:.5f}"]
        print(markdown_row(cells))


def draw(row, folder, path):
    """Density of each layer of the first two networks that have masks, log scale; crosses at the bottom are empty."""
    from matplotlib.figure import Figure

    shown = TOGETHER.get(row, (row,))
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    networks = [(name, title) for name, title in MODELS.items() if row in saved(folder, name)]
    for panel, (model_name, title) in zip(figure.subplots(1, 2, sharey=True), networks, strict=False):
        masks = saved(folder, model_name)
        for name in [name for name in dict.fromkeys(["force", *shown]) if name in masks]:
            density = [float(keep.float().mean()) or float("nan") for keep in masks[name].values()]
            if name not in shown:  # for comparison
                panel.plot(density, label=name, linewidth=1, color="#AAAAAA")
                continue
            look = curve_style(name, 0) | {"markeredgecolor": "black", "markeredgewidth": 0.3, "markersize": 3.5}
            panel.plot(density, label=name, linewidth=1, **look)
            empty = [x for x, value in enumerate(density) if value != value]
            row_of_crosses = [1.4e-7 * 1.7 ** shown.index(name)] * len(empty)
            panel.plot(empty, row_of_crosses, "x", color=look["color"], markersize=5)
        for mask in list(masks.values())[:1]:
            panel.axhline(mask.density, color="black", linewidth=0.6, linestyle=":")
        if any(name in masks for name in shown):
            panel.legend(fontsize=7, loc="lower left", framealpha=0.8)
        else:
            title += ": not run"
        panel.set_yscale("log")
        panel.set_ylim(1e-7, 2)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("layer, from input to output", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("density of the layer", fontsize=8)
    save_figure(figure, path)
    Image.open(path).quantize(64).save(path, optimize=True)  # a third of the size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of masks")
    parser.add_argument("--draw", type=Path, help="only draw the figures, into this folder")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--model", default="vgg19-cifar", choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--steps", type=int, help="of the methods with several; by default their own")
    parser.add_argument("--batches-per-step", type=int, help=f"of snip-mb and grasp-mb; {MANY} by default")
    parser.add_argument("--device", default="cpu")
    precisions = ["float32"] + ["bfloat16"] * ("precision" in inspect.signature(skeletal.prune).parameters)
    parser.add_argument("--precision", default="float32", choices=precisions)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", skeletal.CollapseWarning)  # a column says it

    if arguments.draw:
        for method in [row for row in arguments.methods if row in skeletal.METHODS]:
            draw(method, arguments.out, arguments.draw / f"{method}.png")
        return
    data = None
    for row in arguments.methods:
        path = arguments.out / f"{arguments.model}-{row}.safetensors"
        if path.exists():
            continue
        data = data or load_data(Setup(data=arguments.data, data_dir=arguments.data_dir))
        mask = find(arguments.model, row, data, arguments)
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
        print(f"{arguments.model} {row}: {mask.metadata['seconds_per_step']:.1f} s a step", flush=True)
    print_table(saved(arguments.out, arguments.model))


if __name__ == "__main__":
    main()

"""The figures of docs/howto/tiny-gpt.md: `examples/tiny_gpt.py` with other masks, and with a small dense network.

    python benchmarks/tiny_gpt.py --out runs
    python benchmarks/tiny_gpt.py --out runs --draw docs/img/tiny-gpt.png

The first command trains each network on the same batches, saves what it found as JSON and skips what is already there.
Times of a step are CPU time on one thread, so that other work on the machine counts little; networks take turns. The
second command draws the losses and prints the tables.
"""

import argparse
import json
import runpy
import statistics
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

import skeletal
from skeletal.core.table import markdown_head, markdown_row

GPT = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "examples" / "tiny_gpt.py")))
SMALL = {"width": 64, "heads": 4}  # as many parameters as 1% of the blocks and all else leave
METHODS = ("random-erk", "force", "force, repaired", "snip")
AT_LEAST = 300  # weights of each layer that a repaired mask keeps, 0.2% of the smaller ones
LINES = {"dense": "-", "dense, small": "--", "dense, rate 0.001": ":"}
STEPS, DENSITY, TURNS = 400, 0.01, 15


def initial(**sizes):
    torch.manual_seed(0)
    return GPT.GPT(**sizes)


def masked(method):
    """A fresh network, its mask attached, and the CPU seconds it took to find the mask."""
    model, began = initial(), time.process_time()
    mask = skeletal.prune(
        model,
        [GPT.batch(GPT.TRAIN, seed) for seed in range(60)],
        density=DENSITY,
        method=method.split(",")[0],
        loss=GPT.loss_of,
        prunable=GPT.in_blocks,
        on_collapse="keep",
    )
    if method.endswith("repaired"):
        mask = skeletal.repair(mask, model, at_least=AT_LEAST)
    seconds = time.process_time() - began
    mask.attach(model)
    return model, mask, seconds


def compiled(model, mask):
    return skeletal.compile(model, mask, GPT.batch(GPT.TRAIN, 0)[0])


def trained(name, network, rate=3e-3, **about):
    curve = GPT.train(name, network, STEPS, rate)
    count = sum(parameter.numel() for parameter in network.parameters())
    return about | {"parameters": count, "curve": curve, "text": GPT.sample(network.eval())}


def dense():
    return trained("dense", initial())


def dense_slower():
    return trained("dense, 0.001", initial(), rate=1e-3)


def small():
    return trained("dense, small", initial(**SMALL))


def of_method(method):
    model, mask, seconds = masked(method)
    fast = compiled(model, mask)
    layers = {name: int(keep.sum()) for name, keep in mask.items()}
    return trained(method, fast, kept=mask.kept, seconds=seconds, layers=layers, chosen=fast.report.chosen)


def times():
    """Milliseconds of CPU time of a training step; all networks take turns."""
    model, mask, _ = masked("random-erk")
    networks = {
        "dense": initial(),
        "masked": model,
        "compiled": compiled(model, mask),
        "dense, small": initial(**SMALL),
    }
    optimizers = {name: torch.optim.AdamW(network.parameters()) for name, network in networks.items()}
    found = {name: [] for name in networks}
    characters, following = GPT.batch(GPT.TRAIN, 0)
    for _ in range(TURNS):
        for name, network in networks.items():
            began = time.process_time()
            optimizers[name].zero_grad()
            GPT.loss_of(network(characters), following).backward()
            optimizers[name].step()
            found[name].append(1000 * (time.process_time() - began))
    quarters = {name: statistics.quantiles(values, n=4) for name, values in found.items()}
    return {"milliseconds": quarters, "chosen": networks["compiled"].report.chosen}


RUNS = {
    "times": times,
    "dense": dense,
    "dense, small": small,
    "dense, rate 0.001": dense_slower,
    **{method: lambda method=method: of_method(method) for method in METHODS},
}


def draw(found, path):
    from matplotlib.figure import Figure

    from skeletal.harness.output.figures import save_figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, run in found.items():
        steps, _, validation = zip(*run["curve"], strict=True)
        plain = {name: dict(color="black", linestyle=line) for name, line in LINES.items()}
        axes.plot(steps, validation, label=name, linewidth=1.4, **plain.get(name, {}))
    axes.set(xlabel="step", ylabel="validation loss, nats a character", ylim=(1.8, 3))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--draw", type=Path, help="only draw the losses, into this file, and print the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", skeletal.CollapseWarning)  # the table of layers says it
    for name, run in RUNS.items():
        path = arguments.out / f"{name}.json"
        if not path.exists() and not arguments.draw:
            path.write_text(json.dumps(run()))
    found = {name: json.loads((arguments.out / f"{name}.json").read_text()) for name in RUNS}
    spent = found.pop("times")
    if arguments.draw:
        draw(found, arguments.draw)
    print(markdown_head(["network", "parameters", "training loss", "validation loss", "seconds to find the mask"]))
    for name, run in found.items():
        _, train, validation = run["curve"][-1]
        seconds = f"{run['seconds']:.0f}" if "seconds" in run else "-"
        print(markdown_row([name, f"{run['parameters']:,}", f"{train:.3f}", f"{validation:.3f}", seconds]))
    print(markdown_head(["layer", *METHODS]))
    for layer in found[METHODS[0]]["layers"]:
        print(markdown_row([layer, *(found[method]["layers"][layer] for method in METHODS)]))
    print(markdown_head(["network", "a step, ms of CPU time, median (quartiles)"]))
    for name, (low, middle, high) in spent["milliseconds"].items():
        print(markdown_row([name, f"{middle:.0f} ({low:.0f}-{high:.0f})"]))
    print(f"compiled, all layers {spent['chosen']}")
    for name in ("dense", METHODS[0]):
        print(f"{name}:\n{found[name]['text']}\n")


if __name__ == "__main__":
    main()

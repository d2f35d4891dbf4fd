"""How locally optimal FORCE's masks are, for several numbers of steps: the paper's appendix C, measured.

    python benchmarks/optimality.py --data-dir DIR --model lenet5 --density 0.05 --out lenet5.json [--plot FIGURE.png]

Every step of every run uses the same fixed batches, so the saliency is always of one loss. Each row is a number of
steps T: ε and the bound of Theorem 1 of the last step, against the mask before it; the largest ε / S of all steps; and
ε of the same final mask against the dense network, a neighbourhood that does not depend on T. Rows are saved one by one
in the JSON file and not computed again. `--last-only` measures the last step alone.
"""

import argparse
import json
import math
import time
import warnings
from dataclasses import asdict
from datetime import date
from itertools import islice
from pathlib import Path

import skeletal
from skeletal.core.diagnosis.optimality import local_optimality
from skeletal.core.pruning.along_run import optimality_along_run
from skeletal.core.table import markdown_head, markdown_row
from skeletal.harness.config import Setup
from skeletal.harness.data import Stream
from skeletal.harness.output.figures import save_figure
from skeletal.harness.output.palette import COLOURS
from skeletal.harness.runs.finding import create_model, load_data
from skeletal.harness.store.environment import environment


def summary(found):
    """What the table and the figure need of one measurement."""
    numbers = {name: value for name, value in asdict(found).items() if name != "gains"}
    numbers |= {name: getattr(found, name) for name in ("epsilon", "relative", "bound", "holds")}
    raised = sum(gain > 0 for gain in found.gains) / len(found.gains)
    return numbers | {
        "raised": raised,
        "tried": len(found.gains),
        "at random": max(found.gains[1:], default=found.gains[0]),
    }


def measure(model, batches, steps, arguments):
    """One row: a run of FORCE in `steps` steps, its last step, its worst, and its mask against the dense network."""
    start = time.perf_counter()
    settings = dict(swaps=arguments.swaps, samples=arguments.samples, seed=arguments.seed)
    mask, found = optimality_along_run(
        model,
        batches,
        density=arguments.density,
        steps=steps,
        last_only=arguments.last_only,
        on_collapse="keep",
        **settings,
    )
    dense = found[-1] if steps == 1 else local_optimality(model, batches, mask, **settings)
    return {
        "steps": steps,
        "last": summary(found[-1]),
        "dense": summary(dense),
        "along": [summary(step) for step in found],
        "connected": mask.metadata["connected"],
        "filled": sum(fill["weights"] for fill in mask.metadata["filled"]),
        "seconds": time.perf_counter() - start,
    }


def per_cent(share):
    return f"{100 * share:.2f}%" if math.isfinite(share) else "-"  # S of a network cut in two is 0


def against_dense(row):
    """ε / S against the dense network, whose neighbourhood contains the other one: never less, whatever was sampled."""
    return max(row["dense"]["relative"], row["last"]["relative"])


def print_table(rows):
    columns = ["T", "c_t", "S", "ε / S", "random swaps only", "against dense", "worst step", "Λ", "bound / S"]
    columns += ["bound / ε", "holds", "path", "s"]
    print(markdown_head(columns, left=0))
    for row in rows:
        last, along = row["last"], row["along"]
        saliency = last["saliency"] or float("nan")
        cells = [row["steps"], f"{last['before']:,}", f"{last['saliency']:.4g}", per_cent(last["relative"])]
        cells += [per_cent(last["at random"] / saliency), per_cent(against_dense(row))]
        cells += [per_cent(max(step["relative"] for step in along)), f"{last['smoothness']:.3g}"]
        cells += [f"{last['bound'] / saliency:.1e}" if last["saliency"] else "-"]
        cells += [f"{last['bound'] / last['epsilon']:.0e}" if last["epsilon"] else "-"]
        cells += [f"{sum(step['holds'] for step in along)} of {len(along)}"]
        cells += ["yes" if row["connected"] else "no", f"{row['seconds']:.0f}"]
        print(markdown_row(cells))


def draw(rows, title, path):
    """ε / S and the bound / S of the last step over the number of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["steps"] for row in rows]
    saliency = [row["last"]["saliency"] or float("nan") for row in rows]
    curves = {
        "against the mask before": [row["last"]["epsilon"] for row in rows],
        "against the dense network": [against_dense(row) * s for row, s in zip(rows, saliency, strict=True)],
        "against the mask before, random swaps only": [max(0.0, row["last"]["at random"]) for row in rows],
    }
    looks = [(COLOURS["force"], "o"), (COLOURS["snip"], "s"), (COLOURS["random"], "^")]
    for (label, gains), (colour, marker) in zip(curves.items(), looks, strict=True):
        share = [100 * gain / s for gain, s in zip(gains, saliency, strict=True)]
        left.plot(steps, share, color=colour, marker=marker, label=label)
    bounds = [row["last"]["bound"] / s for row, s in zip(rows, saliency, strict=True)]
    right.plot(steps, bounds, color=COLOURS["force"], marker="o")
    left.set_ylim(0, 1.5 * left.get_ylim()[1])  # room for the legend
    left.set_ylabel("largest gain found, ε / S (%)")
    left.legend(fontsize=7)
    right.set_yscale("log")
    right.set_ylabel("bound of Theorem 1 / S")
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_xticks(steps, [str(step) for step in steps])
        panel.minorticks_off()
        panel.set_xlabel("steps T")
        panel.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of finished rows")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10, 20, 60])
    parser.add_argument("--batches", type=int, default=4, help="fixed batches that make the loss")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--swaps", type=int, default=1, help="p")
    parser.add_argument("--samples", type=int, default=16, help="random swaps of each measurement")
    parser.add_argument("--last-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", skeletal.CollapseWarning)  # a column says it

    told = ("model", "data", "density", "batches", "batch_size", "swaps", "samples", "last_only", "seed")
    settings = {name: getattr(arguments, name) for name in told}
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"settings": settings, "rows": []}
    if known["settings"] != settings:
        raise SystemExit(f"{arguments.out} holds rows of other settings, {known['settings']}: choose another file")
    missing = [steps for steps in arguments.steps if all(row["steps"] != steps for row in known["rows"])]
    if missing:
        data = load_data(Setup(data=arguments.data, data_dir=arguments.data_dir))
        model = create_model(Setup(model=arguments.model, data=arguments.data, seed=arguments.seed), data)
        batches = list(islice(Stream(data.train, arguments.batch_size, arguments.seed), arguments.batches))
    for steps in missing:
        row = measure(model, batches, steps, arguments)
        known["rows"] = sorted([*known["rows"], row], key=lambda row: row["steps"])
        where = environment()
        known["environment"] = {name: where[name] for name in ("cpu", "cores", "threads", "python", "versions")}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(known, indent=1))
        print(f"T = {steps}: {row['seconds']:.0f} s", flush=True)

    where = known["environment"]
    print(f"{arguments.model}, {arguments.data}, density {arguments.density:g}, seed {arguments.seed},", end=" ")
    print(f"p = {arguments.swaps}, 1 promising and {arguments.samples} random swaps;", end=" ")
    print(f"{arguments.batches} fixed batches of {arguments.batch_size} images; {where['cpu']},", end=" ")
    print(f"{where['threads']} threads, torch {where['versions']['torch']}, {date.today()}\n")
    print_table(known["rows"])
    if arguments.plot:
        name = f"{arguments.model}, density {arguments.density:g}, p = {arguments.swaps}"
        draw(known["rows"], name, arguments.plot)


if __name__ == "__main__":
    main()

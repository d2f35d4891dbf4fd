"""`skeletal demo`: the whole idea on real images in a minute or two, without a download."""

from pathlib import Path

from skeletal.cli.settings import Flag, print_json, resolved
from skeletal.core.progress import stage
from skeletal.harness.config import Pruning, Setup, Training

METHODS = ("force", "snip", "random")
DENSITIES = (0.1, 0.02, 0.005)


def demo(*, out: Path = Path("runs/demo"), epochs: int = 15, seed: int = 0, json: Flag = False) -> None:
    """Prune and train a small network three ways and compare: a minute or two.

    Prunes a narrow VGG with 8 convolutions to 90, 98 and 99.5% sparsity with FORCE, SNIP and at random, then trains it
    on scikit-learn's 1,797 handwritten digits; nothing is downloaded. Each run keeps a folder in `out`, so a second
    demo finds them finished.

    Parameters
    ----------
    out
        folder for the run folders and the figure
    epochs
        epochs to train each network
    seed
        seed of initial weights, batches and augmentation
    json
        print the results as JSON on stdout

    """
    import warnings

    import torch
    from rich.console import Console
    from rich.table import Table

    from skeletal.core.errors import CollapseWarning
    from skeletal.harness.output.accuracy import plot_accuracy
    from skeletal.harness.runs.experiment import run, run_folder
    from skeletal.harness.runs.finding import DENSE

    torch.set_num_threads(1)  # on 8x8 images threads wait for each other more than they compute
    console = Console(stderr=json)
    setup = Setup(model="vgg-mini", data="digits", seed=seed)
    settings = [(DENSE, 1.0)] + [(method, density) for method in METHODS for density in DENSITIES]
    results = []
    console.print(
        f"{len(settings)} runs: prune {setup.model} before training,"
        f" train {epochs} epoch{'s' if epochs != 1 else ''} on {setup.data}, test"
    )
    wanted = [Pruning(method=method, density=None if method == DENSE else density) for method, density in settings]
    training, *prunings = resolved("quick", Training(epochs=epochs, batch_size=64, engine="dense"), *wanted)
    left = [not run_folder(setup, pruning, training, root=out).finished for pruning in prunings]
    with stage("prune, train, test", len(left), unit="run", done=left.count(False), named=True) as told:
        for number, pruning in enumerate(prunings):
            what = DENSE if pruning.method == DENSE else f"{pruning.method} at density {pruning.density:g}"
            told.update(len(left) - sum(left[number:]), note=what)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CollapseWarning)  # the table says it
                results.append(run(setup, pruning, training, root=out, progress=False)[1])
        told.update(len(settings), note="")
    figure = out / "demo.png"
    with stage(f"drawing {figure.name}"):
        plot_accuracy(results, figure, f"{setup.model} on {setup.data}, pruned before training")
    if json:
        return print_json({"results": results, "figure": figure})

    dense, *pruned = results
    table = Table(title="test accuracy after training", title_justify="left")
    table.add_column("method")
    for density in DENSITIES:
        table.add_column(f"{100 * (1 - density):g}% pruned", justify="right")
    for method in METHODS:
        mine = [result for result in pruned if result["method"] == method]
        cells = [f"{r['test']['top1']:.1f}%" + ("" if r["connected"] else " (no path left)") for r in mine]
        table.add_row(method, *cells)
    console.print(table)
    for density in DENSITIES:
        console.print(f"\n{100 * (1 - density):g}% pruned, {round(density * pruned[0]['prunable']):,} weights left")
        for result in (result for result in pruned if round(result["density"], 3) == density):
            top1 = result["test"]["top1"]
            console.print(f"  {result['method']:7} {'█' * round(top1 / 2)}{'·' * (50 - round(top1 / 2))} {top1:5.1f}%")
    console.print(f"\ndense, all {pruned[0]['prunable']:,} weights: {dense['test']['top1']:.1f}%")
    console.print(f"figure: {figure}\nrun folders: {out}", highlight=False)

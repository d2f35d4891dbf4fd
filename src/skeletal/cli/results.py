"""`skeletal compare` and `export`: what comes after a run."""

from dataclasses import asdict
from pathlib import Path

from skeletal.cli.settings import Flag, check_files, print_json
from skeletal.core.progress import say


def compare(
    *runs: Path,
    sort: str = "accuracy",
    reverse: Flag = False,
    filter: list[str] | None = None,
    at_most_macs: float | None = None,
    pareto: Flag = False,
    plot: Path | None = None,
    markdown: Flag = False,
    csv: Flag = False,
    latex: Flag = False,
    json: Flag = False,
) -> None:
    """Compare runs, one per row: method, sparsity, accuracy, seconds, what it cost, folder.

    For example:

        skeletal compare runs
        skeletal compare runs/a runs/b --filter method=force --filter "density<0.05" --sort sparsity --markdown
        skeletal compare studies --filter model=vgg19-cifar --filter epochs=160 --plot accuracy.png --csv
        skeletal compare runs --at-most-macs 1e12 --pareto

    Parameters
    ----------
    runs
        run folders, or folders that contain some at any depth (default runs)
    sort
        column or setting, such as lr, to sort by: smallest first, except accuracy
    reverse
        reverse the order
    filter
        only runs that meet this condition on a column, as the table shows it, or a setting, such as method=force,
        "density<0.05", lr=0.1; density and sparsity count in four digits, or in as many as you write; repeatable
    at_most_macs
        compare under an equal budget of multiply-adds (of kept weights, mask finding and training, such as 1e12): a run
        that cost more is taken at its last tested epoch within the budget (see --test-every), or left out
    pareto
        only runs on the Pareto front: no other is as accurate for less, or more accurate for as little
    plot
        draw accuracy against sparsity into this file (png, svg or pdf): one curve per method, means over seeds; and
        against total cost, with the Pareto front ringed, if runs record it
    markdown
        print the table as Markdown
    csv
        print every column as CSV, numbers unrounded
    latex
        print the table as LaTeX
    json
        print every run with its settings as JSON on stdout

    """
    if markdown + csv + latex + json > 1:
        raise ValueError("--markdown, --csv, --latex and --json exclude each other: choose one")
    check_files(plot=plot)
    from skeletal.harness.comparison import compare as comparing
    from skeletal.harness.comparison.budget import at_most
    from skeletal.harness.comparison.row import row_of
    from skeletal.harness.store.search import runs_below

    roots = runs or (Path("runs"),)
    if len(roots) > 1:  # of runs/*, say, which names whatever else lies there
        for file in (path for path in roots if path.is_file()):
            say(f"passed over: {file} is not a folder")
        roots = [path for path in roots if not path.is_file()]
    found = (folder for root in roots for folder in runs_below(root))
    folders = {folder.path.resolve(): folder for folder in found if "kind" not in folder.config}  # trainings alone
    if not folders:
        raise ValueError(f"no runs in {', '.join(map(str, runs or ('runs',)))}")
    rows = list(map(row_of, folders.values()))
    said = ""
    if at_most_macs is not None:
        before, rows = rows, at_most(rows, at_most_macs)
        if not rows:
            raise ValueError(f"none of {len(before)} runs was tested within {at_most_macs:g} multiply-adds")
        within = {row["folder"] for row in rows}
        left_out = sum(row["folder"] not in within for row in comparing.chosen(before, filter or ()))
        said = f", within {at_most_macs:g} multiply-adds ({left_out} left out)"
    rows = comparing.chosen(rows, filter or ())
    if not rows:
        raise ValueError(f"none of {len(folders)} runs meets {' and '.join(filter or ())}")
    if pareto:
        rows, said = comparing.pareto(rows), f"{said}, on the Pareto front"
    rows = comparing.ordered(rows, sort, reverse=reverse)
    if plot is not None:
        comparing.plot(rows, plot)
    if json:
        return print_json(rows)
    if csv:
        return print(comparing.plain(rows).csv())
    table = comparing.table(rows)
    if latex:
        return print(table.latex())
    print(comparing.heading(rows) + said, end="\n\n")
    print(table.shown(markdown=markdown))
    print(f"\n{comparing.legend(rows)}" + (f"\ndrawn into {plot}" if plot else ""))


def export(
    run: Path,
    *,
    onnx: Flag = False,
    torch: Flag = False,
    out: Path | None = None,
    overwrite: Flag = False,
    data_dir: Path | None = None,
    json: Flag = False,
) -> None:
    """Write a run's trained network for other runtimes: dead channels removed, the same outputs, any batch size.

    Runs the file on noise and compares it with the network before it reports success. Give the file images as in
    training: scaled to 0..1, then normalized.

    For example:

        skeletal export runs/vgg-mini-digits-force-0.1-1a2b3c4d --onnx
        skeletal export runs/vgg-mini-digits-force-0.1-1a2b3c4d --torch --out digits.pt2

    Parameters
    ----------
    run
        a finished run's folder
    onnx
        as ONNX, for onnxruntime and others; needs pip install 'skeletal[onnx]'
    torch
        as a PyTorch program that torch.export.load reads without skeletal or the network's code
    out
        the file; by default compact.onnx or compact.pt2 in the run's folder, which are replaced
    overwrite
        replace an existing file of --out
    data_dir
        path of an image folder; only its class names and image sizes are read
    json
        print what was written as JSON on stdout

    """
    if onnx == torch:
        raise ValueError("say what to write: --onnx or --torch" + (", not both" if onnx else ""))
    check_files(out, overwrite=overwrite)
    from skeletal.harness.runs.export import export as write

    done = write(run, "onnx" if onnx else "torch", out, data_dir=data_dir)
    if json:
        return print_json(asdict(done))
    print(f"{done.file}: {done.size / 2**20:.2f} MiB, {done.after:,} of {done.before:,} parameters")
    channels, height, width = done.shape
    print(f"takes normalized images (batch, {channels}, {height}, {width}) in float32, gives logits (batch, classes)")
    print(f"run on noise: outputs differ from the masked network's by at most {done.difference:.2g}")

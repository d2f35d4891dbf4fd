"""`skeletal study`: the paper, figure by figure."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from skeletal.cli.settings import Flag, PruningFlags, SetupFlags, SlurmFlags, check_files, print_json, resolved
from skeletal.core.progress import stage
from skeletal.harness.config import Pruning, Setup

if TYPE_CHECKING:
    from skeletal.study.paper.item import Item
    from skeletal.study.paper.scales import Scale

study = App(
    name="study",
    help="""The paper's figures and tables: list them, run them, print and draw them.

    For example:

        skeletal study list --scale cpu
        skeletal study run fig2 --scale smoke
        skeletal study table fig2 --scale smoke""",
    help_format="markdown",
)


@dataclass(frozen=True, kw_only=True)
class Which:
    """At which scale, and where."""

    scale: Literal["paper", "gpu", "short", "cpu", "digits", "smoke"] = "cpu"
    """paper: as in the paper; gpu: an hour on one GPU; short: small networks on CIFAR-10, minutes on one GPU; cpu: two
    cores; digits: small networks, embedded data; smoke: a test whose numbers mean nothing"""
    epochs: int | None = None
    """train every run for this many epochs instead"""
    seeds: int | None = None
    """run this many seeds instead"""
    root: Path = Path("studies")
    """folder for the study's run folders"""

    def resolved(self) -> "Scale":
        """Return the chosen scale."""
        from skeletal.study.paper.scales import scale_named

        return scale_named(self.scale).altered(epochs=self.epochs, seeds=self.seeds)


WhichFlags = Annotated[Which, Parameter(name="*")]


def _items(names: tuple[str, ...]) -> "list[Item]":
    from skeletal.study.items import items_named

    return items_named(names)


@study.command
def run(
    *items: str,
    which: WhichFlags = Which(),
    only: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    data_dir: Path | None = None,
    jobs: int = 1,
    together: int = 1,
    device: str = "auto",
    executor: Literal["local", "slurm", "none"] = "local",
    slurm: SlurmFlags = None,
    plan: Literal["shell", "array"] | None = None,
    json: Flag = False,
) -> None:
    """Run what is missing for the named items, or for all.

    Finished runs are kept, interrupted ones resume, failed ones are retried, and runs that several items share run
    once. Start the same command several times, on machines that share the folder, and they divide the work.

    For example:

        skeletal study run fig2 --scale smoke
        skeletal study run fig2 fig4 --scale gpu --only b --jobs 8 --device cuda --data-dir D
        skeletal study run table4 --scale paper --executor slurm --jobs 16 --slurm.partition gpu --slurm.gpus-per-node 1

    Parameters
    ----------
    items
        fig1 to fig10, table1, table2, table4; see `skeletal study list`
    only
        only these panels: a, b
    methods
        only these series, by their names in the legend: FORCE, SNIP-MB
    data_dir
        folder of the data sets
    jobs
        worker processes; they share cores and GPUs
    together
        trainings of the same network that take turns in each worker, to fill a GPU
    device
        auto, cpu, cuda, cuda:1, mps
    executor
        local: worker processes here; slurm: jobs on a cluster, which resume by themselves; none: in this process
    slurm
        sbatch options, such as --slurm.partition P --slurm.time 720 (minutes) --slurm.gpus-per-node 1
    plan
        run nothing; print a shell line for each run, or a Slurm job array
    json
        print the state of the runs as JSON on stdout

    """
    scale = which.resolved()
    chosen = _items(items)
    from skeletal.study.paper.select import select

    todo = select(chosen, scale, panels=only, methods=methods)
    if not todo:
        names = ", ".join(item.name for item in chosen)
        raise ValueError(f"there is nothing to run for {names} at scale {which.scale}; see `skeletal study list`")
    if plan is not None:
        if slurm:
            raise ValueError("--plan prints no --slurm.*: leave them out, and write #SBATCH lines into the script")
        from skeletal.study.dispatch.shell import array, lines

        return print((lines if plan == "shell" else array)(todo, which.root, data_dir, device))
    from skeletal.study.dispatch.launch import counts, launch
    from skeletal.study.paper.collect import error_of

    with stage("runs", len(todo), done=counts(todo, which.root)["finished"]) as told:

        def report(counted: Any) -> None:
            told.update(counted["finished"], note=f"{counted['failed']} failed" if counted["failed"] else "")

        ids = launch(
            todo,
            which.root,
            executor=executor,
            workers=jobs,
            together=together,
            data_dir=data_dir,
            device=device,
            slurm=slurm or {},
            report=report,
        )
    counted = counts(todo, which.root)
    folders = [job.folder(which.root) for job in todo]
    failed = {folder.path.name: error for folder in folders if (error := error_of(folder))}
    if json:
        numbers = {state: counted[state] for state in ("finished", "failed", "left")}
        print_json({"runs": len(todo), **numbers, "errors": failed, "submitted": ids, "root": which.root})
    else:
        print(f"{counted['finished']} of {len(todo)} runs finished, {counted['failed']} failed, in {which.root}")
        for error in dict.fromkeys(failed.values()):
            names = [name for name, other in failed.items() if other == error]
            print(f"failed: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {error}")
        if ids:
            print(f"submitted to Slurm: {', '.join(ids)}; logs in {which.root / 'logs'}")
    if failed:
        raise SystemExit(1)


@study.command(name="list")
def list_(*, which: WhichFlags = Which(), device: str = "auto", json: Flag = False) -> None:
    """List the figures and tables, how many runs are done, and what the rest costs here.

    Costs assume one process with the machine to itself; runs that items share count in each. They come from finished
    runs of the same networks in --root or, roughly ("about"), from multiply-adds; "unknown" marks short runs of a
    network not yet run here: their time goes into what cannot be counted.

    For example:

        skeletal study list --scale gpu --root studies

    Parameters
    ----------
    device
        device to estimate for
    json
        print it as JSON on stdout

    """
    scale = which.resolved()
    from skeletal.study.show.overview import overview

    found = overview(_items(()), scale, which.root, device)
    if json:
        return print_json({"scale": which.scale, "about": scale.about, "items": found})
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"scale {which.scale}: {scale.about}", title_justify="left")
    for column in ("item", "shows", "runs", "to do here", "state"):
        shown.add_column(column)
    for line in found:
        runs = f"{line['finished']}/{line['runs']}" + (f", {line['failed']} failed" if line["failed"] else "")
        shown.add_row(line["item"], line["title"], runs, line["to do"], line["state"])
    Console().print(shown)


@study.command
def table(
    item: str,
    *,
    which: WhichFlags = Which(),
    format: Literal["markdown", "csv", "latex"] = "markdown",
    trace: Flag = False,
    out: Path | None = None,
    overwrite: Flag = False,
) -> None:
    """Print a table, or a figure's numbers, beside the published ones.

    For example:

        skeletal study table 1 --scale paper
        skeletal study table fig2 --scale gpu --format csv --out fig2.csv

    Parameters
    ----------
    item
        1, 2, 3, 4 for the paper's tables, or fig1 to fig10
    format
        markdown, csv (a line for each number, with its run folders) or latex
    trace
        also name the run folders behind each number
    out
        write to this file instead
    overwrite
        replace an existing file

    """
    check_files(out, overwrite=overwrite)
    (chosen,) = _items((f"table{item}" if item.isdigit() else item,))
    from skeletal.study.show.tables import table as make

    text = make(chosen, which.resolved(), which.root, format=format, trace=trace)
    if out is None:
        return print(text)
    from skeletal.core.files import write_atomically

    write_atomically(out, text + "\n")
    print(f"written to {out}")


@study.command
def report(*, which: WhichFlags = Which(), out: Path | None = None) -> None:
    """Write one HTML page with every figure and table, and the commands that fill gaps.

    For example:

        skeletal study report --scale gpu --out report

    Parameters
    ----------
    out
        folder for the page and its figures; by default report-SCALE in --root

    """
    from skeletal.study.show.html_report import build

    print(build(which.root, which.resolved(), out or which.root / f"report-{which.scale}"))


@study.command
def measure(
    setup: SetupFlags = Setup(),
    pruning: PruningFlags = Pruning(),
    *,
    preset: str = "quick",
    out: Path = Path("runs"),
    json: Flag = False,
) -> None:
    """Prune at initialization and measure what is left, without training.

    For example:

        skeletal study measure --model vgg19-cifar --data cifar10 --data-dir D --density 0.01 --steps 60

    Parameters
    ----------
    preset
        defaults of cifar10, cifar10-short, cifar100, tiny-imagenet, imagenet, quick
    out
        folder for run folders
    json
        print the result as JSON on stdout

    """
    setup, pruning = resolved(preset, setup, pruning)
    from skeletal.harness.runs.measure import measure as prune_and_measure

    folder, result = prune_and_measure(setup, pruning, root=out)
    if json:
        return print_json({"folder": folder.path, **result})
    print(
        f"{result['model']} on {result['data']}, {result['method']}: kept {result['kept']:,} of"
        f" {result['prunable']:,} weights\nFORCE saliency {result['force_saliency']:.4g}, gradient norm"
        f" {result['gradient_norm']:.4g} (squared), {len(result['empty_layers'])} layers empty\n"
        f"run folder: {folder.path}"
    )

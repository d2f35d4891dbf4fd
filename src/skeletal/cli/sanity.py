"""`skeletal sanity`."""

from pathlib import Path
from typing import Literal

from skeletal.cli.settings import Flag, PruningFlags, SetupFlags, TrainingFlags, print_json, resolved, work
from skeletal.harness.config import Pruning, Setup, Training


def sanity(
    setup: SetupFlags = Setup(),
    pruning: PruningFlags = Pruning(),
    training: TrainingFlags = Training(),
    *,
    preset: str = "quick",
    seeds: int = 3,
    shuffles: int = 3,
    root: Path = Path("runs/sanity"),
    jobs: int = 1,
    executor: Literal["local", "none"] = "none",
    markdown: Flag = False,
    json: Flag = False,
) -> None:
    """Test what a method chooses: its mask against shuffled and random ones.

    Prunes, then measures and trains every variant: shuffled within layers, on other initial weights, with SNIP's
    positions or SNIP's layer densities, found on other batches, with one weight fewer at each step; and random masks
    and the dense network. The same command resumes where it stopped.

    For example:

        skeletal sanity --density 0.02 --epochs 15
        skeletal sanity --model vgg19-cifar --data cifar10 --data-dir D --executor local --jobs 4

    Parameters
    ----------
    preset
        defaults of cifar10, cifar10-short, cifar100, tiny-imagenet, imagenet, quick
    seeds
        number of seeds, starting at --seed; at least 2
    shuffles
        shuffled copies of each mask
    root
        folder for run folders
    jobs
        worker processes, with --executor local; they share cores and GPUs
    executor
        none: one run after the other, in this process; local: worker processes
    markdown
        print the table as Markdown
    json
        print every run as JSON on stdout

    """
    from rich.console import Console

    from skeletal.study.beyond.sanity import SanityChecks, answer, table

    setup, pruning, training = resolved(preset, setup, pruning, training)
    checks = SanityChecks(setup, pruning, training, tuple(range(setup.seed, setup.seed + seeds)), shuffles)
    root = root.absolute()
    work(checks.mask_jobs(), root, setup, "masks", executor=executor, workers=jobs)
    work(checks.jobs(root), root, setup, "runs", executor=executor, workers=jobs)
    rows = checks.results(root)
    if json:
        return print_json(rows)
    print(table(rows, markdown=markdown))
    print("\n" + answer(rows))
    Console(stderr=True, highlight=False).print(f"run folders: {root}")

"""`skeletal sanity`."""

from pathlib import Path
from typing import Literal

from skeletal.cli.run_jobs import work
from skeletal.cli.settings import Flag, PruningFlags, SetupFlags, TrainingFlags, print_json, resolved
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
    """Ask what a method chooses: its mask beside masks that have only its layer densities, or other weights.

    Prunes, then measures and trains every variant: shuffled within layers, on other initial weights, with SNIP's
    positions or SNIP's layer densities, found on other batches, with one weight fewer at each step; and random masks
    and the dense network. The same command goes on where it was stopped.

    For example:

        skeletal sanity --density 0.02 --epochs 15

        skeletal sanity --model vgg19-cifar --data cifar10 --data-dir D --density 0.01 --preset cifar10 --jobs 4
        --executor local

    Parameters
    ----------
    preset
        settings of the paper, for what is not given: cifar10, cifar100, tiny-imagenet, imagenet; or quick
    seeds
        how many, from --seed on; at least 2
    shuffles
        of each mask
    root
        folder of run folders
    jobs
        worker processes, with --executor local; cores and GPUs are divided among them
    executor
        none: one run after the other, in this process; local: worker processes
    markdown
        print the table as Markdown
    json
        print every run as JSON on stdout

    """
    from rich.console import Console

    from skeletal.study.beyond.sanity import SanityChecks, answer, table

    _, pruning, training = resolved(preset, setup, pruning, training)
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

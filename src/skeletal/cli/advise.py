"""`skeletal advise`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from skeletal.cli import config_file
from skeletal.cli.settings import Flag, PruningFlags, SetupFlags, check_files, print_json, resolved, work
from skeletal.harness.config import ONE_SHOT, Pruning, Setup


def advise(
    setup: SetupFlags = Setup(),
    pruning: PruningFlags = Pruning(),
    *,
    methods: list[str] | None = None,
    densities: list[float] | None = None,
    seeds: int = 2,
    preset: str = "quick",
    measure_batches: int = 10,
    root: Path = Path("runs/advise"),
    plot: Path | None = None,
    trained: Path | None = None,
    jobs: int = 1,
    executor: Literal["local", "none"] = "none",
    markdown: Flag = False,
    json: Flag = False,
) -> None:
    """Find out how far a network can be pruned: minutes, without training it.

    Follows each method down to lower densities and recommends the lowest one before the skeleton degrades: before
    paths from input to output are lost, more than a tenth of the kept weights lie on none, or the mean FORCE saliency
    of a kept weight falls. docs/advise.md explains the criterion and how well it predicts accuracy.

    For example:

        skeletal advise --plot advice.png
        skeletal advise --model vgg19-cifar --data cifar10 --data-dir D --methods force --methods snip --steps 60

    Parameters
    ----------
    methods
        one or more; by default the method of a --config file, or else force, snip and random
    densities
        densities to look at; by default 0.5, 0.2, 0.1, ... 0.001
    seeds
        number of initializations, starting at --seed
    preset
        defaults of cifar10, cifar10-short, cifar100, tiny-imagenet, imagenet, quick
    measure_batches
        batches of 128 training images over which gradients are averaged
    root
        folder for run folders; finished runs are reused
    plot
        draw the figure into this file (png, svg or pdf)
    trained
        folder of finished runs with the same settings: compare the advice with their accuracy
    jobs
        worker processes, with --executor local; they share cores and GPUs
    executor
        none: one run after the other, in this process; local: worker processes
    markdown
        print tables as Markdown
    json
        print everything as JSON on stdout

    """
    from rich.console import Console

    from skeletal.core.choices import plain
    from skeletal.study.beyond.advice_shown import Advised
    from skeletal.study.beyond.advise import DENSITIES, METHODS_ADVISED, Advice

    if pruning.density is not None or pruning.sparsity is not None:
        raise ValueError("advise looks at many densities: name them with --densities, not --density or --sparsity")
    if "--method" in config_file.said:
        raise ValueError("advise looks at several methods: name them, or one, with --methods, not --method")
    check_files(plot=plot)
    prunings = []
    for method in methods or METHODS_ADVISED:
        steps = None if plain(method) in ONE_SHOT else pruning.steps
        setup, settings = resolved(preset, setup, replace(pruning, method=method, steps=steps))
        prunings.append(settings)
    every = tuple(range(setup.seed, setup.seed + seeds))
    advice = Advice(setup, tuple(prunings), tuple(densities or DENSITIES), every, measure_batches)
    root = root.absolute()
    work(advice.jobs(), root, setup, "sweeps", executor=executor, workers=jobs)
    found = Advised.of(advice, root)
    if plot is not None:
        found.save(plot)
    judged = None
    if trained is not None:
        from skeletal.study.beyond.hindsight import hindsight

        judged = hindsight(advice, found.lines, found.recommendations, trained)
    if json:
        return print_json({"methods": found.to_dict(), "hindsight": judged and asdict(judged), "plot": plot})
    print(found.table(markdown=markdown))
    print()
    print("\n".join(found.in_words()))
    if judged is not None:
        print("\n" + judged.table(markdown=markdown))
    Console(stderr=True, highlight=False).print(f"run folders: {root}" + (f"; picture: {plot}" if plot else ""))

"""The legend: which settings a label of the paper's figures stands for, and the jobs that draw it."""

from collections.abc import Iterator

from skeletal.core.choices import require
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.study.paper.jobs import Job
from skeletal.study.paper.scales import Task

DENSE, RANDOM, FORCE, SYNFLOW = "Dense", "Random", "FORCE", "SynFlow"
LABELS = (DENSE, FORCE, "SNIP", "SNIP-MB", "GRASP", "GRASP-MB", "GRASP-It", SYNFLOW, RANDOM)
"""of the paper's figures, and SynFlow"""
FORCE_10, FORCE_FLOOR, RANDOM_ERK = "FORCE, B=10", "FORCE-floor", "Random-ERK"
LATER = ("ProsPr", "NTK-SAP", "PX", "PHEW", "NPB", RANDOM_ERK)
"""what the paper does not have"""


def pruning(task: Task, label: str, density: float) -> Pruning:
    """Return the resolved settings of a label at a task's budget.

    Budgets are the paper's (sections 5.1, 5.2): T steps of B batches for what is iterative, one batch for SNIP and
    GRASP, and T x B batches at once for their -MB versions. Later methods have the budgets of their own papers.
    """
    require("method", label, (*LABELS, FORCE_10, FORCE_FLOOR, *LATER))
    one, all_at_once = dict(batches_per_step=1), dict(batches_per_step=task.steps * task.batches)
    long = dict(steps=task.unlabelled_steps, **one)
    iterative = dict(steps=task.steps, batches_per_step=task.batches)
    settings: dict[str, dict] = {
        DENSE: dict(method="dense"),
        FORCE: dict(method="force", **iterative),
        "SNIP": dict(method="snip", **one),
        "SNIP-MB": dict(method="snip", **all_at_once),
        "GRASP": dict(method="grasp", **one),
        "GRASP-MB": dict(method="grasp", **all_at_once),
        "GRASP-It": dict(method="grasp-it", **iterative),
        SYNFLOW: dict(method="synflow", **long),
        RANDOM: dict(method="random", **one),
        FORCE_10: dict(method="force", steps=task.steps, batches_per_step=10 * task.batches),
        FORCE_FLOOR: dict(method="force-floor", **iterative),
        "ProsPr": dict(method="prospr", **one),
        "NTK-SAP": dict(method="ntk-sap", **long),
        "PX": dict(method="px", **long),
        "PHEW": dict(method="phew", **one),
        "NPB": dict(method="npb", **one),
        RANDOM_ERK: dict(method="random-erk", **one),
    }
    return resolved(task, density, **settings[label])


def resolved(task: Task, density: float, **settings: object) -> Pruning:
    """Return pruning settings filled in from a task's preset."""
    record = Pruning(density=density, prune_batch_size=task.prune_batch_size, **settings)  # type: ignore[bad-argument-type]
    return resolve(record, task.preset)


def _setup(task: Task, seed: int) -> Setup:
    return resolve(Setup(model=task.model, data=task.data, seed=seed), task.preset)


def trained(task: Task, settings: Pruning) -> Iterator[Job]:
    """Prune and train, once for each seed."""
    training: Training = resolve(task.training, task.preset)
    for seed in range(task.seeds):
        yield Job(_setup(task, seed), settings, training)


def measured(task: Task, settings: Pruning) -> Iterator[Job]:
    """Prune and measure, once for each seed."""
    for seed in range(task.seeds):
        yield Job(_setup(task, seed), settings, None)


def sparsity(density: float) -> str:
    """Return a density as the percentage pruned: "99.5%" of 0.005."""
    return f"{100 * (1 - density):.6g}%"

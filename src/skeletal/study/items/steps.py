"""Figures 4, 5 and 6: what the number of steps T and the schedule bring, in saliency and in accuracy."""

from functools import partial
from typing import Any

from skeletal.harness.config import Pruning
from skeletal.study.items.accuracy import top
from skeletal.study.paper.item import Cell, Item, Panel
from skeletal.study.paper.scales import Pair, Scale, Task
from skeletal.study.paper.series import FORCE, measured, pruning, resolved, sparsity, trained

# The paper does not name the network of figures 4 to 6. Saliency after one-shot pruning is a divisor there, and on a
# VGG without a path to its output it is 0: so it is the ResNet, whose shortcuts always leave one.
NETWORK: Pair = ("resnet50", "cifar10")


def force_in(steps: int, task: Task, density: float, schedule: str = "exponential") -> Pruning:
    """FORCE in T steps; one step is SNIP, which has no schedule, and so is the same run in every line."""
    if steps == 1:
        return pruning(task, "SNIP", density)
    return resolved(task, density, method="force", steps=steps, batches_per_step=task.batches, schedule=schedule)


def quantity(result: dict[str, Any], *, name: str, x: float) -> list[tuple[float, float]]:
    """Read one number of a measured mask."""
    return [(x, result[name])]


def _gain(scale: Scale, panel: str, schedule: str) -> list[Cell]:
    """FORCE saliency over T, divided by one-shot SNIP's on the same seed; a line for each density."""
    task = scale.measured.get(NETWORK)
    if task is None:
        return []
    cells = []
    for density in scale.saliency_densities:
        one_shot = list(measured(task, force_in(1, task, density)))
        for steps in scale.steps:
            for job, baseline in zip(measured(task, force_in(steps, task, density, schedule)), one_shot, strict=True):
                read = partial(quantity, name="force_saliency", x=steps)
                cells.append(Cell(panel, sparsity(density), job, read, baseline))
    return cells


def _accuracy(scale: Scale) -> list[Cell]:
    task = scale.trained.get(NETWORK)
    if task is None:
        return []
    return [
        Cell("b", schedule, job, partial(top, x=steps))
        for schedule in ("exponential", "linear")
        for steps in scale.steps
        for job in trained(task, force_in(steps, task, scale.schedule_density, schedule))
    ]


def _against_density(scale: Scale, panel: str, name: str, lines: dict[str, str | int]) -> list[Cell]:
    """One number of the mask against density; lines are labels, or FORCE with that many steps."""
    task = scale.measured.get(NETWORK)
    if task is None:
        return []
    cells = []
    for series, line in lines.items():
        for density in scale.densities:
            settings = pruning(task, line, density) if isinstance(line, str) else force_in(line, task, density)
            for job in measured(task, settings):
                cells.append(Cell(panel, series, job, partial(quantity, name=name, x=density)))
    return cells


def _fig6(scale: Scale) -> list[Cell]:
    one_shot: dict[str, str | int] = {"SNIP": "SNIP", "GRASP": "GRASP"}
    iterative: dict[str, str | int] = {f"T={steps}": steps for steps in scale.steps[1:]}
    saliency = _against_density(scale, "a", "force_saliency", one_shot | iterative)
    return saliency + _against_density(scale, "b", "gradient_norm", one_shot | {FORCE: scale.steps[-1]})


def _gain_panel(key: str, schedule: str) -> Panel:
    return Panel(key, f"ResNet-50, CIFAR-10, {schedule}", "steps T", "FORCE saliency / saliency at T = 1", "log", "log")


ITEMS = (
    Item(
        "fig4",
        "Steps and schedule",
        "(a) FORCE saliency (Eq. 6) gained by pruning in T steps, against one-shot SNIP; (b) the accuracy it brings at "
        "{schedule} sparsity, for both schedules (Figure 4, section 5.3). Where SNIP leaves no saliency there is no "
        "ratio.",
        (
            _gain_panel("a", "exponential"),
            Panel("b", "ResNet-50, CIFAR-10", "steps T", "test accuracy (%)", "log", "linear"),
        ),
        lambda scale: _gain(scale, "a", "exponential") + _accuracy(scale),
    ),
    Item(
        "fig5",
        "Saliency against steps, exponential and linear",
        "Both schedules reach about the same FORCE saliency; the linear one needs more steps (Figure 5, appendix B.1). "
        "Where SNIP leaves no saliency there is no ratio.",
        (_gain_panel("a", "exponential"), _gain_panel("b", "linear")),
        lambda scale: _gain(scale, "a", "exponential") + _gain(scale, "b", "linear"),
    ),
    Item(
        "fig6",
        "Saliency and gradient norm against sparsity",
        "Masks found in many steps keep more FORCE saliency (a) and more of the gradient's norm (b) than one-shot "
        "ones, GRASP's included, which aims at that norm (Figure 6, appendix B.2).",
        (
            Panel("a", "ResNet-50, CIFAR-10", "sparsity", "FORCE saliency", "sparsity", "log"),
            Panel("b", "ResNet-50, CIFAR-10", "sparsity", "gradient norm, squared", "sparsity", "log"),
        ),
        _fig6,
    ),
)  # fmt: skip

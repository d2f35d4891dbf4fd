"""Figures 7 and 10: what is left in each layer."""

import math
from functools import cache, partial
from typing import Any

from skeletal.study.items.accuracy import named
from skeletal.study.paper.item import Cell, Item, Panel
from skeletal.study.paper.scales import Pair, Scale
from skeletal.study.paper.series import FORCE, measured, pruning, resolved

_NETWORKS: tuple[Pair, Pair] = (("resnet50", "cifar10"), ("vgg19", "cifar10"))
ZOOM = 100  # weights


@cache
def layer_sizes(model: str, data: str) -> dict[str, int]:
    """The number of prunable weights in each layer of a network made for a data set."""
    import torch

    from skeletal.core.model.weights import prunable_weights
    from skeletal.harness import data as data_sets
    from skeletal.harness import models

    spec = data_sets.SPECS[data]
    with torch.random.fork_rng(devices=[]):
        network = models.create(
            model, num_classes=spec.num_classes, in_channels=spec.channels, image_size=spec.image_size
        )
    return {name: weight.numel() for name, weight in prunable_weights(network).items()}


def fractions(result: dict[str, Any]) -> list[tuple[float, float]]:
    """Read the fraction kept in each layer, layers counted from 1 at the input."""
    return [(float(i), density) for i, density in enumerate(result["densities"].values(), 1)]


def counts(result: dict[str, Any]) -> list[tuple[float, float]]:
    """Read the number of weights kept in each layer."""
    sizes = layer_sizes(result["model"], result["data"])
    return [(float(i), float(round(density * sizes[name])))
            for i, (name, density) in enumerate(result["densities"].items(), 1)]  # fmt: skip


def intermediate(result: dict[str, Any], *, near: float) -> list[tuple[float, float]]:
    """Read the fractions of the intermediate mask whose global density is nearest, by ratio."""
    masks = result["trace"]
    nearest = min(masks, key=lambda mask: abs(math.log(mask["kept"] / (near * result["prunable"]))))
    return fractions(nearest)


def _fig7(scale: Scale) -> list[Cell]:
    readers = (fractions, counts, counts)
    cells = []
    for pair, keys in zip(_NETWORKS, ("abc", "def"), strict=True):
        task = scale.measured.get(pair)
        if task is None:
            continue
        for label in (FORCE, "SNIP", "GRASP"):
            for job in measured(task, pruning(task, label, scale.structure_density)):
                cells += [Cell(key, label, job, read) for key, read in zip(keys, readers, strict=True)]
    return cells


def _fig10(scale: Scale) -> list[Cell]:
    task = scale.measured.get(("vgg19", "cifar10"))
    if task is None:
        return []
    cells = []
    for key, label in (("a", "GRASP"), ("c", "SNIP")):
        for density in scale.global_densities:
            cells += [
                Cell(key, f"{density:g}", job, fractions) for job in measured(task, pruning(task, label, density))
            ]
    steps = dict(steps=task.steps, batches_per_step=task.batches)
    for key, method in (("b", "grasp-iterative"), ("d", "force")):
        for job in measured(task, resolved(task, scale.global_densities[-1], method=method, **steps)):
            cells += [Cell(key, f"{d:g}", job, partial(intermediate, near=d)) for d in scale.global_densities]
    return cells


def _layers(key: str, title: str, what: str, y_max: float | None = None) -> Panel:
    return Panel(key, title, "prunable layer, from the input", what, "layers", "linear", y_max=y_max)


def _fig7_panels() -> tuple[Panel, ...]:
    panels = []
    for pair, keys in zip(_NETWORKS, ("abc", "def"), strict=True):
        panels += [
            _layers(keys[0], named(pair), "fraction of weights left"),
            _layers(keys[1], named(pair), "weights left"),
            _layers(keys[2], f"{named(pair)}, the bottom of ({keys[1]})", "weights left", ZOOM),
        ]
    return tuple(panels)


ITEMS = (
    Item(
        "fig7",
        "What is left in each layer at {structure}",
        "All methods keep the first and last layers and prune the deep ones hardest; some layers are emptied "
        "altogether (Figure 7, appendix B.3).",
        _fig7_panels(),
        _fig7,
    ),
    Item(
        "fig10",
        "Pruning consistency: the same layers at every sparsity?",
        "Fraction left in each layer at several global densities (the legend's): for SNIP and FORCE the order of "
        "layers stays, for GRASP it turns around, and GRASP applied step by step prunes the first and last layers "
        "nearly away. In (b) and (d) the intermediate masks nearest to those densities on the way to the last "
        "(Figure 10, appendix E.2; the paper does not name the network, here it is VGG-19).",
        (
            _layers("a", "GRASP, one shot", "fraction of weights left"),
            _layers("b", "GRASP, iterative", "fraction of weights left"),
            _layers("c", "SNIP, one shot", "fraction of weights left"),
            _layers("d", "FORCE", "fraction of weights left"),
        ),
        _fig10,
    ),
)

"""Figures 1, 2, 3, 8 and 9: trained accuracy against sparsity."""

from functools import partial
from typing import Any

from skeletal.study.paper import published
from skeletal.study.paper.item import Cell, Item, Panel, Reference
from skeletal.study.paper.scales import Pair, Scale
from skeletal.study.paper.series import DENSE, FORCE, RANDOM, pruning, trained

NETWORKS = {"resnet50": "ResNet-50", "vgg19": "VGG-19", "stable-resnet50": "Stable ResNet-50"}
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet", "imagenet": "ImageNet"}


def named(pair: Pair) -> str:
    """Return a pair as the paper writes it."""
    return f"{NETWORKS[pair[0]]}, {DATA[pair[1]]}"


def top(result: dict[str, Any], *, x: float, k: int = 1) -> list[tuple[float, float]]:
    """Read the test accuracy in percent; a network that has collapsed scores what it scores."""
    return [(x, result["test"][f"top{k}"])]


def over_density(
    scale: Scale,
    panel: str,
    pair: Pair,
    methods: tuple[str, ...],
    *,
    densities: tuple[float, ...] | None = None,
    suffix: str = "",
    large_budget: bool = False,
    k: int = 1,
) -> list[Cell]:
    """Accuracy against density, a series for each method; nothing where the scale leaves this network out.

    With `large_budget` SNIP and GRASP get the T x B batches of FORCE, as on the paper's larger data sets
    (section 5.2), under their own names.
    """
    task = scale.trained.get(pair)
    if task is None:
        return []
    cells = []
    for label in methods:
        if scale.methods and label not in (*scale.methods, DENSE):
            continue
        visited = (1.0,) if label == DENSE else densities or scale.densities
        if densities is None and label == FORCE and pair[0] == "resnet50":
            visited += scale.deepest
        for density in visited:
            budget = "-MB" if large_budget and label in ("SNIP", "GRASP") else ""
            for job in trained(task, pruning(task, label + budget, density)):
                cells.append(Cell(panel, label + suffix, job, partial(top, x=density, k=k)))
    return cells


def accuracy_panel(key: str, pair: Pair, references: tuple[Reference, ...] = ()) -> Panel:
    """Test accuracy against sparsity."""
    return Panel(key, named(pair), "sparsity", "test accuracy (%)", "sparsity", "linear", references)


def _fig1(scale: Scale) -> list[Cell]:
    return over_density(scale, "", ("resnet50", "cifar10"), (FORCE, "SNIP", "GRASP", RANDOM, DENSE))


CIFAR10: dict[str, Pair] = {"a": ("resnet50", "cifar10"), "b": ("vgg19", "cifar10")}
_LARGER: dict[str, Pair] = {
    "a": ("resnet50", "cifar100"),
    "b": ("vgg19", "cifar100"),
    "c": ("resnet50", "tiny-imagenet"),
    "d": ("vgg19", "tiny-imagenet"),
}
_ALL = dict(zip("abcdef", (*CIFAR10.values(), *_LARGER.values()), strict=True))
_STABLE = {"a": "cifar10", "b": "cifar100"}


def _fig2(scale: Scale) -> list[Cell]:
    methods = (FORCE, "SNIP", "SNIP-MB", "GRASP", "GRASP-MB", *scale.more, RANDOM, DENSE)
    return [cell for key, pair in CIFAR10.items() for cell in over_density(scale, key, pair, methods)]


def _fig3(scale: Scale) -> list[Cell]:
    methods = (FORCE, "SNIP-MB", "GRASP-MB", RANDOM, DENSE)
    return [cell for key, pair in _LARGER.items() for cell in over_density(scale, key, pair, methods)]


def _fig8(scale: Scale) -> list[Cell]:
    cells = []
    for key, data in _STABLE.items():
        for network, suffix in (("resnet50", ""), ("stable-resnet50", "-SR")):
            pair = network, data
            cells += over_density(scale, key, pair, (FORCE, "SNIP"), suffix=suffix, large_budget=data != "cifar10")
    return cells


def _fig9(scale: Scale) -> list[Cell]:
    methods = (FORCE, "SNIP-MB", "GRASP-MB", "GRASP-It", RANDOM, DENSE)
    return [cell for key, pair in _ALL.items() for cell in over_density(scale, key, pair, methods)]


ITEMS = (
    Item(
        "fig1",
        "Accuracy against sparsity, ResNet-50",
        "Beyond about 95% sparsity the one-shot methods fall below random pruning; FORCE stays trainable (Figure 1).",
        (accuracy_panel("", ("resnet50", "cifar10"), published.cifar10("resnet50", (FORCE, "SNIP", "GRASP", RANDOM))),),
        _fig1,
    ),
    Item(
        "fig2",
        "Accuracy against sparsity on CIFAR-10, one batch and many",
        "With as many batches as FORCE the one-shot methods (-MB) reach further than with one, and FORCE furthest: on "
        "ResNet-50 to 99.99% (Figure 2, section 5.1).",
        (
            accuracy_panel("a", CIFAR10["a"], published.cifar10("resnet50")),
            accuracy_panel("b", CIFAR10["b"], (*published.cifar10("vgg19"), *published.synflow_band())),
        ),
        _fig2,
    ),
    Item(
        "fig3",
        "Accuracy against sparsity on CIFAR-100 and Tiny-ImageNet",
        "The same on larger data sets, 60 steps of 10 and 20 batches; SNIP and GRASP see as many batches (Figure 3, "
        "section 5.2).",
        tuple(accuracy_panel(key, pair) for key, pair in _LARGER.items()),
        _fig3,
    ),
    Item(
        "fig8",
        "Stable ResNet",
        "Residual branches scaled down (-SR) help SNIP at high sparsity, and do not help FORCE (Figure 8, appendix D).",
        tuple(accuracy_panel(key, ("resnet50", data)) for key, data in _STABLE.items()),
        _fig8,
    ),
    Item(
        "fig9",
        "GRASP-It against the others",
        "Iterative pruning by the squared gradient, GRASP-It, outlives GRASP at extreme sparsity, close to FORCE on "
        "VGG-19 and below it on ResNet-50 (Figure 9, appendix E.1).",
        tuple(accuracy_panel(key, pair) for key, pair in _ALL.items()),
        _fig9,
    ),
)

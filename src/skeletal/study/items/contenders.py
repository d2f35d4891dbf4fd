"""Beyond the paper: criteria that it does not have, beside its best."""

from skeletal.study.items.accuracy import CIFAR10, accuracy_panel, over_density
from skeletal.study.paper import published
from skeletal.study.paper.item import Cell, Item
from skeletal.study.paper.scales import Scale
from skeletal.study.paper.series import DENSE, FORCE, FORCE_10, FORCE_FLOOR, LATER, RANDOM, SYNFLOW

SERIES = (FORCE, FORCE_10, FORCE_FLOOR, "SNIP-MB", SYNFLOW, *LATER, RANDOM, DENSE)


def _cells(scale: Scale) -> list[Cell]:
    return [cell for key, pair in CIFAR10.items() for cell in over_density(scale, key, pair, SERIES)]


ITEMS = (
    Item(
        "contenders",
        "Later criteria beside FORCE, accuracy against sparsity",
        "What came after the paper, at the budgets of their own papers; FORCE with one batch a step, as in the paper, "
        "and with ten; SNIP on as many batches as FORCE (not in the paper).",
        (
            accuracy_panel("a", CIFAR10["a"]),
            accuracy_panel("b", CIFAR10["b"], published.synflow_band()),
        ),
        _cells,
    ),
)

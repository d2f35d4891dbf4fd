"""Tables 1, 2 and 4: ImageNet; and Table 3, which is counted and needs no run."""

from skeletal.study.items.accuracy import named, over_density
from skeletal.study.paper import published
from skeletal.study.paper.item import Cell, Item, Panel
from skeletal.study.paper.scales import Scale
from skeletal.study.paper.series import DENSE, FORCE, RANDOM

DENSITIES = (0.1, 0.05, 0.02, 0.01)
_METHODS = (DENSE, "SNIP", "GRASP", FORCE, RANDOM)
_ALL_METHODS = (DENSE, "SNIP", "GRASP", FORCE, "GRASP-It", RANDOM)


def _imagenet(number: int, networks: tuple[str, ...], methods: tuple[str, ...], title: str, caption: str) -> Item:
    # A panel is a quantity: top-1 and top-5, of each network.
    keys = {
        (network, k): f"top{k}" if len(networks) == 1 else f"{network}-top{k}" for network in networks for k in (1, 5)
    }
    panels = tuple(
        Panel(key, f"{named((network, 'imagenet'))}, top-{k}", "sparsity", f"top-{k} (%)", "sparsity", "linear",
              published.imagenet(network, k, methods, f"Table {number}"))
        for (network, k), key in keys.items()
    )  # fmt: skip

    def cells(scale: Scale) -> list[Cell]:
        return [
            cell
            for (network, k), key in keys.items()
            for cell in over_density(
                scale, key, (network, "imagenet"), methods, densities=DENSITIES, large_budget=True, k=k
            )
        ]

    return Item(f"table{number}", title, caption, panels, cells)


ITEMS = (
    _imagenet(1, ("vgg19",), _METHODS, "VGG-19 on ImageNet", "FORCE ahead of SNIP, and more so the sparser (Table 1)."),
    _imagenet(
        2, ("resnet50",), _METHODS, "ResNet-50 on ImageNet",
        "FORCE far ahead of SNIP and GRASP from 98% on, and no better than random pruning (Table 2, section 5.4).",
    ),
    Item(
        "table3",
        "Weights by type of layer",
        "Percent of all parameters in each type of layer, and their number; counted, no run needed (Table 3).",
        (),
        lambda scale: [],
    ),
    _imagenet(
        4, ("vgg19", "resnet50"), _ALL_METHODS, "ImageNet, all methods",
        "Tables 1 and 2 with GRASP-It, which FORCE surpasses or matches everywhere (Table 4, appendix E.1).",
    ),
)  # fmt: skip

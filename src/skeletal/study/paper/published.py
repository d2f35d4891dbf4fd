"""Numbers that others published, to stand beside ours: the paper's tables and text, and Synaptic-Flow's data."""

from skeletal.study.paper.item import Reference

_SPARSITIES = (0.1, 0.05, 0.02, 0.01)  # densities of the ImageNet tables' columns

# Tables 1, 2 and 4: top-1 and top-5 at 90, 95, 98 and 99% sparsity; the first two are rows of the last.
_IMAGENET = {
    "vgg19": {
        "Dense": ((73.1, 91.3),),
        "SNIP": ((68.5, 88.8), (63.8, 86.0), (51.3, 77.4), (33.4, 61.1)),
        "GRASP": ((69.5, 89.2), (67.6, 87.8), (0.1, 0.5), (0.1, 0.5)),
        "FORCE": ((69.8, 89.5), (65.9, 86.9), (53.9, 79.1), (40.4, 67.8)),
        "GRASP-It": ((68.5, 88.7), (62.6, 84.7), (47.2, 73.3), (29.1, 52.7)),
        "Random": ((64.2, 86.0), (56.6, 81.0), (42.2, 69.3), (29.0, 55.4)),
    },
    "resnet50": {
        "Dense": ((75.6, 92.8),),
        "SNIP": ((61.5, 83.9), (44.3, 69.6), (7.0, 17.2), (0.1, 0.5)),
        "GRASP": ((65.4, 86.7), (46.2, 66.0), (1.6, 2.0), (0.1, 0.5)),
        "FORCE": ((63.7, 85.5), (54.7, 78.9), (42.1, 67.7), (31.1, 56.1)),
        "GRASP-It": ((61.9, 83.9), (49.6, 74.1), (31.0, 55.0), (19.6, 39.8)),
        "Random": ((64.6, 86.0), (57.2, 80.8), (45.0, 70.4), (32.4, 57.0)),
    },
}

# Table 3: percent of all parameters, and their number in millions, as printed.
TABLE_3_COLUMNS = ("Conv", "Fully connected", "BatchNorm", "Bias", "Prunable", "Total")
TABLE_3 = {
    ("resnet50", "cifar10"): (99.69, 0.09, 0.11, 0.11, 99.78, 23.52),
    ("vgg19", "cifar10"): (99.92, 0.03, 0.03, 0.03, 99.95, 20.04),
    ("resnet50", "cifar100"): (98.91, 0.86, 0.11, 0.11, 99.78, 23.71),
    ("vgg19", "cifar100"): (99.69, 0.25, 0.03, 0.03, 99.94, 20.08),
    ("resnet50", "tiny-imagenet"): (98.06, 1.71, 0.11, 0.11, 99.78, 23.91),
    ("vgg19", "tiny-imagenet"): (99.44, 0.51, 0.03, 0.03, 99.94, 20.13),
    ("resnet50", "imagenet"): (91.77, 8.01, 0.10, 0.11, 99.79, 25.56),
    ("vgg19", "imagenet"): (13.93, 86.05, 0.01, 0.01, 99.98, 143.68),
}

# Mean of three seeds of the files Results/data/Accuracy_CompRatio of ganguli-lab/Synaptic-Flow (9dfa57a), top-1.
_SYNFLOW_DENSITIES = (1.0, 0.1, 0.0562, 0.0316, 0.01, 0.00316, 0.001)
_SYNFLOW_VGG16 = {
    "Random": (93.5, 91.1, 89.7, 87.5, 79.1, 49.1, 10.0),
    "SNIP": (93.5, 92.3, 91.8, 91.1, 89.1, 84.6, 76.3),
    "GRASP": (93.4, 91.8, 91.1, 90.2, 87.5, 82.7, 70.9),
    "SynFlow": (93.5, 93.3, 92.7, 92.1, 90.1, 86.8, 80.4),
}
SYNFLOW = "Synaptic-Flow's data: VGG-16, 160 epochs, scored in evaluation mode"


def imagenet(network: str, top: int, methods: tuple[str, ...], table: str) -> tuple[Reference, ...]:
    """The rows `methods` of the paper's ImageNet tables, `top` 1 or 5; the dense network stands at density 1."""
    return tuple(
        Reference(method, density, pair[0 if top == 1 else 1], f"paper, {table}")
        for method in methods
        for density, pair in zip((1.0,) if method == "Dense" else _SPARSITIES, _IMAGENET[network][method], strict=True)
    )


def cifar10(network: str, methods: tuple[str, ...] | None = None) -> tuple[Reference, ...]:
    """The accuracies that section 5.1 states in words, "nearly" and "around", for `methods` or all."""
    stated = [("SNIP", 0.01, 10.0), ("SNIP-MB", 0.01, 90.0), ("Random", 0.01, 75.0 if network == "resnet50" else 82.0),
              ("FORCE", 0.001, 80.0)]  # fmt: skip
    stated += [(method, 0.001, 10.0) for method in ("SNIP", "SNIP-MB", "GRASP", "GRASP-MB", "Random")]
    return tuple(
        Reference(*numbers, "paper, text of section 5.1") for numbers in stated if not methods or numbers[0] in methods
    )


def synflow_band() -> tuple[Reference, ...]:
    """A neighbouring network from another laboratory, for an idea of what to expect of VGG-19."""
    return tuple(
        Reference(method, density, accuracy, SYNFLOW)
        for method, accuracies in _SYNFLOW_VGG16.items()
        for density, accuracy in zip(_SYNFLOW_DENSITIES, accuracies, strict=True)
    )

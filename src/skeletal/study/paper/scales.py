"""How much of the paper's effort a study gets: networks, data, seeds, epochs and steps, as one table.

A scale maps each network and data set of the paper to what is run in its place; what it leaves out is not in the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from skeletal.core.choices import require
from skeletal.harness.config import Training

Pair = tuple[str, str]
"""network and data set, in the paper's words: ("resnet50", "cifar10")"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network on a data set, with its share of the effort."""

    model: str
    data: str
    preset: str
    seeds: int
    """runs of each setting; their seeds are 0, 1, ..."""
    steps: int
    """T of FORCE and GRASP-It"""
    batches: int = 1
    """B, averaged at each step; the -MB methods get T x B"""
    unlabelled_steps: int = 100
    """T of SynFlow, NTK-SAP and PX"""
    prune_batch_size: int | None = None
    """examples in a batch; by default the preset's"""
    training: Training = field(default_factory=Training)
    """what differs from the preset's recipe"""

    @property
    def where(self) -> str:
        """For titles: "vgg19-cifar, cifar10"."""
        return f"{self.model}, {self.data}"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One row of the table."""

    name: str
    about: str
    """one sentence for the reader of a figure"""
    warning: str = ""
    """what figures say above their panels"""
    trained: Mapping[Pair, Task]
    measured: Mapping[Pair, Task]
    """for figures that prune and do not train; `seeds` are their trials"""
    densities: tuple[float, ...]
    """of the figures over sparsity"""
    deepest: tuple[float, ...]
    """beyond them: FORCE on ResNets"""
    saliency_densities: tuple[float, ...]
    """one line each in figures 4a and 5"""
    steps: tuple[int, ...]
    """values of T in figures 4, 5 and 6; 1 is one-shot SNIP"""
    structure_density: float
    """figure 7"""
    schedule_density: float
    """figure 4b"""
    global_densities: tuple[float, ...]
    """one line each in figure 10; the last is where its iterative methods end"""
    methods: tuple[str, ...] = ()
    """if any, only these labels of the paper's"""
    more: tuple[str, ...] = ()
    """labels the paper does not have"""

    def altered(self, *, epochs: int | None = None, seeds: int | None = None) -> "Scale":
        """Return this scale with other numbers of epochs or seeds everywhere; its `about` says so."""
        if (epochs, seeds) == (None, None):
            return self
        for name, value in (("epochs", epochs), ("seeds", seeds)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

        def change(task: Task) -> Task:
            training = task.training if epochs is None else replace(task.training, epochs=epochs)
            return replace(task, training=training, seeds=seeds or task.seeds)

        said = " and ".join(f"{value} {name}" for name, value in (("epochs", epochs), ("seeds", seeds)) if value)
        return replace(
            self,
            about=f"{self.about} Here with {said}.",
            trained={pair: change(task) for pair, task in self.trained.items()},
            measured={pair: change(task) for pair, task in self.measured.items()},
        )


def _tasks(pairs: Mapping[Pair, tuple[str, str]], **effort: object) -> dict[Pair, Task]:
    presets = {"cifar10": "cifar10", "cifar100": "cifar100", "tiny-imagenet": "tiny-imagenet", "imagenet": "imagenet"}
    return {
        pair: Task(**{"model": model, "data": data, "preset": presets.get(data, "quick"), **effort})  # type: ignore[bad-argument-type]
        for pair, (model, data) in pairs.items()
    }


_CIFAR_NETWORKS = {"resnet50": "resnet50-cifar", "vgg19": "vgg19-cifar", "stable-resnet50": "stable-resnet50-cifar"}
_IMAGENET_NETWORKS = {"resnet50": "resnet50", "vgg19": "vgg19_bn"}


def _full(data: str, networks: Mapping[str, str] = _CIFAR_NETWORKS) -> dict[Pair, tuple[str, str]]:
    return {(network, data): (model, data) for network, model in networks.items()}


_DIGITS: dict[Pair, tuple[str, str]] = {
    ("resnet50", "cifar10"): ("resnet20-cifar", "digits"),
    ("stable-resnet50", "cifar10"): ("stable-resnet20-cifar", "digits"),
    ("vgg19", "cifar10"): ("vgg-mini", "digits"),
}
_SMALL: dict[Pair, tuple[str, str]] = {pair: (model, "cifar10") for pair, (model, _) in _DIGITS.items()}
_FAST = dict(bf16=True, channels_last=True)

SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            name="paper",
            about="The paper's networks, data sets, recipe and budgets, with three seeds: for GPU servers.",
            trained={
                **_tasks(_full("cifar10"), seeds=3, steps=300, batches=1),
                **_tasks(_full("cifar100"), seeds=3, steps=60, batches=10),
                **_tasks(_full("tiny-imagenet"), seeds=3, steps=60, batches=20),
                **_tasks(_full("imagenet", _IMAGENET_NETWORKS), seeds=3, steps=60, batches=40),
            },
            measured=_tasks(_full("cifar10"), seeds=5, steps=300),
            densities=(0.1, 0.05, 0.02, 0.01, 0.005, 0.001),
            deepest=(0.0001,),
            saliency_densities=(0.1, 0.05, 0.02, 0.01, 0.005, 0.001),
            steps=(1, 2, 5, 10, 20, 50, 100, 300),
            structure_density=0.001,
            schedule_density=0.005,
            global_densities=(0.9, 0.7, 0.5, 0.3, 0.1, 0.05, 0.01),
        ),
        Scale(
            name="gpu",
            about="Full-size networks and sparsities on CIFAR-10, trained 8 epochs instead of 350 in bf16, one seed, "
            "T = 60 instead of 300.",
            trained=_tasks(_full("cifar10"), seeds=1, steps=60, training=Training(epochs=8, **_FAST)),
            measured=_tasks(_full("cifar10"), seeds=3, steps=60),
            densities=(0.1, 0.05, 0.02, 0.01, 0.005, 0.001),
            deepest=(0.0001,),
            saliency_densities=(0.1, 0.05, 0.02, 0.01, 0.005, 0.001),
            steps=(1, 2, 5, 10, 20, 50, 100),
            structure_density=0.001,
            schedule_density=0.005,
            global_densities=(0.9, 0.7, 0.5, 0.3, 0.1, 0.05, 0.01),
            more=("SynFlow",),
        ),
        Scale(
            name="short",
            about="Small networks on CIFAR-10, a VGG of 472,160 prunable weights and ResNet-20, trained 10 epochs in "
            "one cycle of the learning rate with batches of 512, three seeds: minutes for a figure on one GPU.",
            trained=_tasks(_SMALL, seeds=3, steps=60, prune_batch_size=128,
                           training=Training(epochs=10, batch_size=512, lr=0.4, decay="one-cycle", **_FAST)),
            measured=_tasks(_SMALL, seeds=3, steps=60),
            densities=(0.05, 0.02, 0.01, 0.005, 0.001),
            deepest=(),
            saliency_densities=(0.1, 0.01, 0.005, 0.001),
            steps=(1, 2, 5, 10, 20, 60),
            structure_density=0.001,
            schedule_density=0.005,
            global_densities=(0.9, 0.5, 0.1, 0.01),
            more=("SynFlow",),
        ),
        Scale(
            name="cpu",
            about="For two CPU cores: LeNet-5 on Fashion-MNIST and ResNet-20 on CIFAR-10 are trained, for a few "
            "epochs; what needs no training is measured on the paper's networks, with few trials and steps.",
            trained={
                **_tasks({("vgg19", "cifar10"): ("lenet5", "fashion-mnist")}, seeds=3, steps=60,
                         training=Training(epochs=3, lr=0.02, engine="dense")),
                **_tasks({("resnet50", "cifar10"): ("resnet20-cifar", "cifar10"),
                          ("stable-resnet50", "cifar10"): ("stable-resnet20-cifar", "cifar10")},
                         seeds=1, steps=60, training=Training(epochs=3, bf16=True)),
            },
            measured=_tasks(_full("cifar10"), seeds=2, steps=20),
            densities=(0.1, 0.05, 0.02, 0.01, 0.005, 0.001),
            deepest=(),
            saliency_densities=(0.1, 0.01, 0.005, 0.001),
            steps=(1, 2, 5, 10, 20),
            structure_density=0.001,
            schedule_density=0.005,
            global_densities=(0.9, 0.5, 0.1, 0.01),
            more=("SynFlow",),
        ),
        Scale(
            name="digits",
            about="Small networks trained to the end, 12 epochs, on scikit-learn's digits (1,437 images of 8x8 pixels, "
            "no download), three seeds: minutes for a figure on two CPU cores. A miniature, not the paper's claim.",
            trained=_tasks(_DIGITS, seeds=3, steps=60, training=Training(epochs=12)),
            measured=_tasks(_DIGITS, seeds=3, steps=60),
            densities=(0.05, 0.02, 0.01, 0.005, 0.001),
            deepest=(),
            saliency_densities=(0.1, 0.05, 0.02, 0.01, 0.005),
            steps=(1, 2, 5, 10, 20, 60),
            structure_density=0.01,
            schedule_density=0.01,
            global_densities=(0.9, 0.5, 0.1, 0.02),
            more=("SynFlow",),
        ),
        Scale(
            name="smoke",
            about="Seconds on any machine, to see that it works; the numbers mean nothing.",
            warning="smoke test: these numbers mean nothing",
            trained=_tasks(_DIGITS, seeds=2, steps=3, unlabelled_steps=3, prune_batch_size=32,
                           training=Training(epochs=1, engine="dense")),
            measured=_tasks(_DIGITS, seeds=2, steps=3, prune_batch_size=32),
            densities=(0.1, 0.01),
            deepest=(),
            saliency_densities=(0.1, 0.01),
            steps=(1, 3),
            structure_density=0.01,
            schedule_density=0.05,
            global_densities=(0.5, 0.1),
            methods=("FORCE", "SNIP", "Random"),
        ),
    )
}  # fmt: skip


def scale_named(name: str) -> Scale:
    """Return the scale called `name`. Raises ValueError for another name."""
    require("scale", name, SCALES)
    return SCALES[name]

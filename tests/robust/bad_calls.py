"""Numbers, batches, settings, names and data that cannot be used."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

import skeletal
from tests.cases import convnet, images, mlp
from tests.harness.data.layouts import write_tiny
from tests.robust import child
from tests.robust.case import case, command

NUMBERS, SETTINGS, COMMANDS = "Weights, gradients and batches", "Settings and names", "Config files and data"


def prune(model: nn.Module | None = None, batches: Any = None, **options: Any) -> skeletal.Mask:
    return skeletal.prune(model or mlp(), images() if batches is None else batches, **{"density": 0.5, **options})


@case(NUMBERS, "a weight that is NaN or infinite")
def _() -> object:
    model = mlp()
    with torch.no_grad():
        model[3].weight[2, 1] = float("nan")
    return prune(model)


@case(NUMBERS, "an input that is NaN or infinite, so that the loss is")
def _() -> object:
    batches = images()
    batches[1][0][0, 0, 0, 0] = float("inf")
    return prune(batches=batches, steps=3)


@case(NUMBERS, "a gradient that is NaN at a finite loss")
def _() -> object:
    return prune(loss=lambda outputs, _: (outputs.sum() * 0).sqrt())


@case(NUMBERS, "a score of your own that is NaN")
def _() -> object:
    return prune(score=lambda at: {name: weight * float("nan") for name, weight in at.weights.items()})


@case(NUMBERS, "a training loss that is NaN or infinite, at any step; the last good checkpoint stays")
def _() -> object:
    return training_with(lambda model: model[9].register_forward_hook(lambda *_: _[2] * float("nan")))


@case(NUMBERS, "a weight that overflows in training")
def _() -> object:
    return training_with(lambda model: model[9].bias.register_hook(lambda gradient: gradient * float("inf")), 1797)


def training_with(change: Callable[[nn.Module], object], batch_size: int = 256) -> object:
    from skeletal.harness import data
    from skeletal.harness.config import Training, resolve
    from skeletal.harness.training.train import train

    model = child.network()
    change(model)
    training = resolve(Training(epochs=1, batch_size=batch_size), "quick")
    return train(model, data.load("digits", None, seed=0, workers=0), training, device="cpu", progress=False)


@case(NUMBERS, "no batches at all")
def _() -> object:
    return prune(batches=[])


@case(NUMBERS, "a batch without examples")
def _() -> object:
    return prune(batches=[(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long))])


@case(NUMBERS, "something that is no batch")
def _() -> object:
    return prune(batches=[torch.zeros(2, 192)])


@case(NUMBERS, "a label that no output stands for")
def _() -> object:
    return prune(batches=[(x, y + 7) for x, y in images()])


@case(NUMBERS, "images with another number of channels than the network takes: torch's own words")
def _() -> object:
    return prune(convnet(), images(channels=1))


@case(NUMBERS, "a loss that is no number")
def _() -> object:
    return prune(loss=lambda outputs, _: outputs)


@case(NUMBERS, "a loss that no weight changes")
def _() -> object:
    return prune(loss=lambda outputs, _: outputs.detach().sum())


@case(NUMBERS, "a network with nothing to prune")
def _() -> object:
    return prune(nn.BatchNorm1d(3))


@case(NUMBERS, "a network that collapses on the way")
def _() -> object:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        model[3].bias.fill_(-100)
    return prune(model, density=0.1, steps=4)


@case(NUMBERS, "a finished mask without a path from input to output: a warning, as comparisons need the mask")
def _() -> object:
    def first_layer(at: Any) -> dict[str, torch.Tensor]:
        return {"1.weight": at.weights["1.weight"].abs() + 1, "3.weight": at.weights["3.weight"].abs() * 1e-3}

    with warnings.catch_warnings():
        warnings.simplefilter("error", skeletal.CollapseWarning)
        return prune(density=0.1, method="magnitude", score=first_layer)


@case(NUMBERS, "fewer weights than a repair needs")
def _() -> object:
    mask = skeletal.Mask({"1.weight": torch.zeros(20, 192), "3.weight": torch.eye(20)[:10]})
    return skeletal.repair(mask, mlp(), at_least=20)


for asked in ("0", "-1", "1.5", "nan"):
    case(SETTINGS, f"density {asked}")(lambda asked=asked: prune(density=float(asked)))


@case(SETTINGS, "density 1e-12, which keeps nothing")
def _() -> object:
    return prune(density=1e-12)


@case(SETTINGS, "sparsity 1")
def _() -> object:
    return command("run", "--sparsity", "1")


@case(SETTINGS, "density and sparsity")
def _() -> object:
    return command("run", "--density", "0.1", "--sparsity", "0.9")


@case(SETTINGS, "a density that is no number")
def _() -> object:
    return command("run", "--density", "much")


@case(SETTINGS, "no steps")
def _() -> object:
    return prune(steps=0)


@case(SETTINGS, "several steps of a one-shot method")
def _() -> object:
    return prune(method="snip", steps=5)


@case(SETTINGS, "no epochs")
def _() -> object:
    return command("run", "--epochs", "0")


@case(SETTINGS, "a seed that no generator takes")
def _() -> object:
    return command("run", "--seed", 2**63)


@case(SETTINGS, "no weight of that name")
def _() -> object:
    return prune(prunable=["9.weight"])


for what, arguments in {
    "method": ("run", "--method", "forc"), "network": ("run", "--model", "vgg-mni"),
    "data set": ("run", "--data", "cifr10"), "preset": ("run", "--preset", "cifar"),
    "engine": ("run", "--engine", "spars"), "schedule": ("run", "--schedule", "expo"),
    "device": ("run", "--device", "gpu"), "option": ("run", "--desnity", "0.1"), "command": ("rnu",),
}.items():  # fmt: skip
    case(SETTINGS, f"an unknown {what}")(lambda arguments=arguments: command(*arguments))


@case(SETTINGS, "an image too small for the network")
def _() -> object:
    return command("run", "--model", "lenet5")


@case(SETTINGS, "a last batch of one image, on which batch norm cannot train")
def _() -> object:
    return command("run", "--model", "resnet50-cifar", "--batch-size", "4")


def config(content: bytes) -> str:
    Path("my.toml").write_bytes(content)
    return command("run", "--config", "my.toml")


@case(COMMANDS, "a config file that is not there")
def _() -> object:
    return command("run", "--config", "my.toml")


for wrong, content in {
    "a config file that is no TOML": b"density = ",
    "a config file that is no text": b"\xff\xfe\x00",
    "a config file with an unknown setting": b"desnity = 0.1\n",
    "a config file with a setting of another kind": b'epochs = "many"\n',
    "a config file with a table for a number": b"[density]\nx = 1\n",
    "a config file nested 5,000 deep": b"density = " + b"[" * 5000 + b"]" * 5000,
}.items():
    case(COMMANDS, wrong)(lambda content=content: config(content))


@case(COMMANDS, "a data set that is not here")
def _() -> object:
    with mock.patch.dict(os.environ, {"HOME": os.getcwd()}):
        return command("run", "--data", "cifar10")


def image_folder() -> list[Path]:
    from PIL import Image

    files = []
    for part in ("train", "val"):
        for name in ("ape", "bee"):
            Path("pets", part, name).mkdir(parents=True)
            for number in range(3):
                files.append(Path("pets", part, name, f"{number}.png"))
                Image.new("RGB", (40, 40)).save(files[-1])
    return files


@case(COMMANDS, "an image folder that is not in --data-dir, though it is elsewhere")
def _() -> object:
    image_folder()
    return command("run", "--data", "pets", "--data-dir", "there")


@case(COMMANDS, "a Tiny-ImageNet that was unpacked half-way")
def _() -> object:
    write_tiny(Path("data/tiny-imagenet-200"))
    Path("data/tiny-imagenet-200/train/n00000007/images/n00000007_0.JPEG").unlink()
    return command("run", "--data", "tiny-imagenet")


@case(COMMANDS, "labels of CIFAR that are no whole numbers")
def _() -> object:
    Path("data/cifar-10-batches-py").mkdir(parents=True)
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 1.9]}
    for name in ("data_batch_1", "test_batch"):
        Path("data/cifar-10-batches-py", name).write_bytes(pickle.dumps(batch))
    return command("run", "--data", "cifar10")


@case(COMMANDS, "a corrupt image in the middle of a folder; `--skip-corrupt` leaves it out and counts")
def _() -> object:
    for file in image_folder()[:6]:
        file.write_bytes(file.read_bytes()[:50])
    from skeletal.harness import data

    return list(data.load("pets", None, seed=0, workers=0).train.batches(2, train=False))


@case(COMMANDS, "a class without images")
def _() -> object:
    image_folder()
    Path("pets/train/cat").mkdir()
    return command("run", "--data", "pets")


@case(COMMANDS, "other classes to train than to test")
def _() -> object:
    for file in image_folder():
        if file.parts[1:3] == ("val", "bee"):
            file.unlink()
    Path("pets/val/bee").rename("pets/val/cat")
    (Path("pets/val/cat") / "0.png").write_bytes(Path("pets/train/ape/0.png").read_bytes())
    return command("run", "--data", "pets")

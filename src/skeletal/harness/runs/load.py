"""A run read back from its folder: the trained network, its mask, what was asked for and what it scored."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from skeletal.core.extras import MissingExtraError
from skeletal.core.masks.mask import Mask
from skeletal.core.model.state.attributes import set_attributes
from skeletal.harness import data as data_sets
from skeletal.harness.config import Setup
from skeletal.harness.data import Data, Spec
from skeletal.harness.runs.finding import create_model, load_data
from skeletal.harness.store.folders import MASK, RunFolder
from skeletal.harness.store.weightsfile import WEIGHTS, load_weights


@dataclass(frozen=True)
class Run:
    """A finished run, as `load_run` reads it."""

    path: Path
    """its folder"""
    network: nn.Module
    """trained, in evaluation mode, on the CPU; pruned weights are exactly 0"""
    mask: Mask | None
    """None if the run is dense"""
    config: dict[str, Any]
    """its settings, complete"""
    result: dict[str, Any]
    """what it scored and cost, as in `result.json`"""
    metrics: list[dict[str, Any]]
    """one row per epoch"""
    shape: tuple[int, int, int]
    """of an input image: channels, height, width"""


def load_run(path: Path | str, data_dir: Path | str | None = None) -> Run:
    """Read the run in a folder back: its network with the trained weights, its mask, its result.

    Args:
        path: the folder, as `skeletal run` prints it.
        data_dir: where the data set lies; asked only where its name does not tell classes and image size.

    Raises:
        FileNotFoundError: there is no run, or it has not finished.
        ValueError: a file of it is damaged, or of another network.
        MaskError: a pruned weight is not 0.
        MissingExtraError: a package of the extra `run` is not installed.

    """
    path = Path(path)
    folder = RunFolder.at(path)
    setup = setup_of(folder, data_dir)
    shapes = shapes_of(setup)
    network, mask = trained(folder, setup, shapes)
    if not folder.finished:
        raise FileNotFoundError(f"{path} has no result yet: repeat the command that started it")
    shape = shapes.channels, shapes.image_size, shapes.image_size
    return Run(path, network.eval(), mask, folder.config, folder.result(), folder.metrics(), shape)


def setup_of(folder: RunFolder, data_dir: Path | str | None = None, device: str = "auto") -> Setup:
    """The network and the data of a run, here."""
    if "model" not in folder.config:
        raise ValueError(f"{folder.path} is a part of a run, such as a round of imp: give the folder of the whole run")
    settings = {name: folder.setting(name) for name in ("model", "data", "seed")}
    place = None if data_dir is None else Path(data_dir)
    for name in ("image_size", "skip_corrupt", "validation"):  # which runs of other data sets or earlier versions lack
        if name in folder.config:
            settings[name] = folder.config[name]
    return Setup(**settings, data_dir=place, device=device)


def shapes_of(setup: Setup) -> Data | Spec:
    """Classes, channels and image size of a setup's data.

    An image folder is read for them. So is a part of a data set that comes as one, which has fewer classes; where its
    images are not to be found, it is taken to be whole.
    """
    spec = data_sets.SPECS.get(setup.data)
    if spec is None:
        return load_data(setup)
    if "folder" in spec.layouts:
        with suppress(data_sets.DataNotFoundError, data_sets.DataError, MissingExtraError):
            return load_data(setup)
    return replace(spec, image_size=setup.image_size or spec.image_size)


def trained(folder: RunFolder, setup: Setup, shapes: Data | Spec) -> tuple[nn.Module, Mask | None]:
    """A run's network with the weights and attributes it ended with, and its mask, which they are checked against.

    Raises:
        FileNotFoundError: training has not finished.
        ValueError: the file is damaged, or of another network.
        MaskError: a pruned weight is not 0.

    """
    weights = folder.path / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"{folder.path} has no {WEIGHTS}: its training has not finished")
    network = create_model(setup, shapes)
    try:
        values, attributes = load_weights(folder.path)
        network.load_state_dict(values)
        set_attributes(network, attributes)
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{weights} is damaged, or not of {setup.model}: {error}") from error
    mask = Mask.load(folder.path / MASK) if (folder.path / MASK).exists() else None
    if mask is not None:
        mask.check(network)
    return network, mask

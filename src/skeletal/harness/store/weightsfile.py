"""The weights that a run's network ends with, and beside them the attributes that its own code has changed."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from skeletal.core.files import write_atomically
from skeletal.core.model.tensors import Tensors

WEIGHTS = "model.safetensors"
_ATTRIBUTES = "attributes"


def save_weights(folder: Path, state: dict[str, Any], attributes: dict[str, Any]) -> None:
    """Under the model's own names, tied weights once for each, so that any loader can read them."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    copies = {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    about = {_ATTRIBUTES: json.dumps(attributes)} if attributes else None
    write_atomically(folder / WEIGHTS, save(copies, about))


def load_weights(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Weights, and plain attributes as `Attributes.changed` gives them.

    Raises:
        SafetensorError: the file is damaged.
        ValueError: its attributes are.

    """
    with safe_open(folder / WEIGHTS, "pt") as file:
        about = file.metadata() or {}
    return load_file(folder / WEIGHTS), json.loads(about.get(_ATTRIBUTES, "{}"))

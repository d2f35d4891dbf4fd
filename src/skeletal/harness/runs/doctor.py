"""What skeletal finds on this machine."""

from pathlib import Path
from typing import Any

import torch

from skeletal.core.model.denormals import flush_denormals
from skeletal.engine import available
from skeletal.harness import data, models
from skeletal.harness.config import PRESETS
from skeletal.harness.devices import pick_device
from skeletal.harness.store.environment import environment


def findings(data_dir: Path | None = None) -> dict[str, dict[str, Any]]:
    """Versions, processor, data sets and names, by section; nothing is decoded or changed.

    Says what is known of the sparse engine on this host; the first call finds out, which takes about a minute.
    """
    here = environment()
    return {
        "versions": {"python": here["python"], **here["versions"]},
        "machine": {
            "platform": here["platform"],
            "cpu": here["cpu"],
            "cores": here["cores"],
            "torch threads": here["threads"],
            "vector units": torch.backends.cpu.get_cpu_capability(),
            "flushes denormals": _flushes_denormals(),
            "sparse engine": str(available()),
            "sparse engine, bfloat16": str(available("bfloat16")),
            "memory (GiB)": here["memory_gib"],
            "gpus": ", ".join(gpu["name"] for gpu in here["gpus"] or []) or "none",
            "device auto means": str(pick_device("auto")),
        },
        "data": {name: _place(name, place, data_dir) for name, place in data.found(data_dir).items()},
        "networks": {name: row.about for name, row in models.NAMES.items()}
        | {"others": "any torchvision or timm name"},
        "presets": {name: _preset(settings) for name, settings in PRESETS.items()},
    }


def _place(name: str, place: Path | str | None, data_dir: Path | None) -> str:
    if place is None:
        return "not found; looked in " + ", ".join(map(str, data.where(name, data_dir)))
    return place if isinstance(place, str) else f"found in {place}"


def _preset(settings: dict[str, Any]) -> str:
    return (
        f"{settings['epochs']} epochs, batch {settings['batch_size']}, weight decay {settings['weight_decay']:g};"
        f" {settings['steps']} pruning steps of {settings['batches_per_step']} x {settings['prune_batch_size']} images"
    )


def _flushes_denormals() -> bool:
    with flush_denormals():
        return bool(torch.tensor(1e-38) / 4 == 0)

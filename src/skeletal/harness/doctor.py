"""What skeletal finds on this machine."""

from pathlib import Path
from typing import Any

import torch

from skeletal.harness import data, models
from skeletal.harness.config import PRESETS
from skeletal.harness.devices import pick_device
from skeletal.harness.environment import environment


def findings(data_dir: Path | None = None) -> dict[str, dict[str, Any]]:
    """Versions, processor, data sets and names, by section; nothing is decoded or changed."""
    here = environment()
    sets = {
        name: "embedded"
        if place == "embedded"
        else f"found in {place}"
        if place
        else f"not found; {_looked(name, data_dir)}"
        for name, place in data.found(data_dir).items()
    }
    return {
        "versions": {"python": here["python"], **here["versions"]},
        "machine": {
            "platform": here["platform"],
            "cpu": here["cpu"],
            "cores": here["cores"],
            "torch threads": here["threads"],
            "vector units": torch.backends.cpu.get_cpu_capability(),
            "flushes denormals": _flushes_denormals(),
            "memory (GiB)": here["memory_gib"],
            "gpus": ", ".join(gpu["name"] for gpu in here["gpus"] or []) or "none",
            "device auto means": str(pick_device("auto")),
        },
        "data": sets,
        "networks": {name: row.about for name, row in models.NAMES.items()}
        | {"others": "any torchvision or timm name"},
        "presets": {name: _preset(settings) for name, settings in PRESETS.items()},
    }


def _looked(name: str, data_dir: Path | None) -> str:
    return "looked in " + ", ".join(map(str, data.where(name, data_dir)))


def _preset(settings: dict[str, Any]) -> str:
    return (
        f"{settings['epochs']} epochs, batch {settings['batch_size']}, weight decay {settings['weight_decay']:g};"
        f" {settings['steps']} pruning steps of {settings['batches_per_step']} x {settings['prune_batch_size']} images"
    )


def _flushes_denormals() -> bool:
    from skeletal.core.denormals import flush_denormals

    with flush_denormals():
        return bool(torch.tensor(1e-38) / 4 == 0)

"""A run as one row of a comparison: what was asked for, what it reached, and what that cost."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from skeletal.core.masks.mask import Mask
from skeletal.harness.config import AS_IN, IMP, NOT_IDENTITY, Pruning, Setup, Training, rounds_to
from skeletal.harness.ledger import Ledger
from skeletal.harness.store.folders import MASK, RunFolder

Row = dict[str, Any]
COSTS = ("finding_macs", "training_macs", "total_macs", "dense_macs", "memory")
COLUMNS = (
    "model", "data", "method", "density", "sparsity", "seed", "epochs", "accuracy", "seconds", *COSTS, "folder",
)  # fmt: skip
_NO_DIFFERENCE = {
    *COLUMNS, *NOT_IDENTITY, "density_asked", "update_density", "epochs_asked", "test_every", "on_collapse", "mask",
}  # fmt: skip
"""columns and what is asked for in them, settings that change no mask and no result, and the digest of a mask, whose
settings stand beside it"""
_DEFAULTS = {f.name: f.default for record in (Setup, Pruning, Training) for f in fields(record)} | AS_IN["paper"]
_LOSSES = {"default": "cross-entropy", "nll_loss": "nll"}
"""as settings call the losses that masks record"""


def row_of(folder: RunFolder) -> Row:
    """What is known of a run: `COLUMNS`, then its settings by name. What it has not reached, or recorded, is None.

    Multiply-adds are forward and backward, of kept weights: of finding the mask, of training, and of both; `dense_macs`
    are those of both if no weight were pruned. Memory is the most that was held at once, in bytes.

    Raises:
        ValueError: a file of it is damaged.

    """
    config = folder.config
    result = folder.result() if folder.finished else {}
    method, density = result.get("method", config.get("method")), result.get("density", config.get("density"))
    found_with: Row = {}
    if config.get("mask") is not None and (folder.path / MASK).exists():  # from a file, which says how it was found
        mask = Mask.load(folder.path / MASK)
        method, density = mask.metadata.get("method", "mask"), mask.density
        found_with = _found_with(mask)
        if mask.metadata.get("seed", config.get("seed")) != config.get("seed"):
            found_with["mask_seed"] = mask.metadata["seed"]
    density = 1.0 if method == "dense" else density
    asked = config.get("density", found_with.get("density", density))
    if config.get("update") == "gradual":  # which goes from one density to another
        found_with["starting_density"] = config.get("density", found_with.get("density"))
        asked = config.get("update_density")
    row = {
        "model": config.get("model"),
        "data": result.get("data", config.get("data")),
        "method": method,
        "density": density,
        "sparsity": None if density is None else 100 * (1 - density),
        "seed": config.get("seed"),
        "epochs": result.get("epochs", len(folder.metrics())),
        "accuracy": result.get("test", {}).get("top1"),
        "seconds": result.get("seconds"),
        **_costs(Ledger.read(result.get("cost"))),
        "folder": str(folder.path),
    }
    digests = {f"{name}_digest": value.split()[0] for name, value in folder.fingerprint.items()}
    settings = {name: value for name, value in (found_with | config | digests).items() if name not in row}
    return row | {"epochs_asked": config.get("epochs"), "density_asked": asked} | settings


def _found_with(mask: Mask) -> Row:
    """How a mask was found, as settings of a run say it."""
    made = mask.metadata
    found = {f.name: made[f.name] for f in fields(Pruning) if f.name in made}
    if made.get("repaired"):  # to more weights than were asked for
        found.pop("density", None)
    if "loss" in made:
        found["loss"] = _LOSSES.get(made["loss"], made["loss"])
    if "engine" in made:
        found["scoring_engine"] = made["engine"]
    if "best_of" in made:
        found["best_of"] = len(made["best_of"]["losses"])
    return found


def _costs(ledger: Ledger) -> Row:
    finding, training, total = ledger.finding, ledger.training, ledger.total
    return {
        "finding_macs": None if finding is None else finding.macs_kept,
        "training_macs": None if training is None else training.macs_kept,
        "total_macs": None if total is None else total.macs_kept,
        "dense_macs": None if total is None else total.macs_dense,
        "memory": None if total is None else total.peak_memory,
    }


def labels(rows: Sequence[Row]) -> list[str]:
    """What each run is called beside the others: its method, and the settings that differ, such as "force, steps=300".

    Runs of one network, data set and method have the same label if they differ in seed, density and epochs alone.
    """
    families: dict[Any, list[Row]] = {}
    for row in rows:
        families.setdefault(_family(row), []).append(row)
    telling = {family: _differing(members) for family, members in families.items()}
    return [_label(row, telling[_family(row)]) for row in rows]


def _family(row: Row) -> tuple[Any, ...]:
    return row["model"], row["data"], row["method"]


def _differing(rows: Sequence[Row]) -> list[str]:
    settings = dict.fromkeys(name for row in rows for name in row if name not in _NO_DIFFERENCE)
    values = {name: {str(_setting(row, name)) for row in rows} for name in sorted(settings)}
    return [name for name in values if len(values[name] - ({"None"} if name.endswith("_digest") else set())) > 1]


def _setting(row: Row, name: str) -> Any:
    """A setting that tells one run from another; None for what is usual, or follows from the density."""
    value = row.get(name)
    if name == "steps" and row["method"] == IMP and value == rounds_to(row["density_asked"]):
        return None
    return None if value == _DEFAULTS.get(name) else value


def _label(row: Row, telling: Sequence[str]) -> str:
    told = [f"{name}={value}" for name in telling if (value := _setting(row, name)) is not None]
    return ", ".join([str(row["method"]), *told])

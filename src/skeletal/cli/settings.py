"""What the commands share: settings from the command line, resolved, shown, and results printed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from skeletal.harness.config import Pruning, Setup, Training, resolve

SetupFlags = Annotated[Setup, Parameter(name="*", group="Network and data")]
PruningFlags = Annotated[Pruning, Parameter(name="*", group="Pruning")]
TrainingFlags = Annotated[Training, Parameter(name="*", group="Training")]
Flag = Annotated[bool, Parameter(negative="")]


def resolved(preset: str, *records: Any) -> list[Any]:
    """The records with what was not said filled in from the preset."""
    return [record if isinstance(record, Setup) else resolve(record, preset) for record in records]


def print_config(preset: str, *records: Any) -> None:
    """The resolved settings as TOML, which `--config` reads back."""
    print(f"preset = {json.dumps(preset)}")
    for record in records:
        for key, value in asdict(record).items():
            if value is not None:  # TOML has no null; and JSON's strings, numbers and lists are TOML's
                print(f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}")


def print_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else there."""
    print(json.dumps(value, indent=2, default=str))


def summary(result: dict[str, Any]) -> str:
    """The result of a run in two lines."""
    if result["method"] == "dense":
        what = "dense"
    else:
        what = (
            f"{result['method']}: kept {result['kept']:,} of {result['prunable']:,} weights"
            f" (density {result['density']:.4g}, sparsity {100 * (1 - result['density']):.4g}%)"
        )
        if result["empty_layers"]:
            what += f", {len(result['empty_layers'])} layers empty"
    test = result["test"]
    return (
        f"{result['model']} on {result['data']}, {what}\n"
        f"test top-1 {test['top1']:.2f}%  top-5 {test['top5']:.2f}%  loss {test['loss']:.4f}"
        f"  after {result['epochs']} epochs, {result['seconds']:.1f} s"
    )

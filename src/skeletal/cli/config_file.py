"""`--config file.toml`: settings from a file, which the command line overrules."""

import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from skeletal.harness.config import Pruning, Setup, Training

_USES = {
    "run": (Setup, Pruning, Training),
    "estimate": (Setup, Pruning, Training),
    "sanity": (Setup, Pruning, Training),
    "prune": (Setup, Pruning),
    "advise": (Setup, Pruning),
    "study measure": (Setup, Pruning),
    "train": (Setup, Training),
}
said: set[str] = set()
"""options of the command under way that the command line or the file names, such as "--seed", by name"""
_EVERY = {field.name for record in (Setup, Pruning, Training) for field in fields(record)}


def read(path: Path, tokens: Sequence[str]) -> Dict:
    """The settings of a TOML file, for the command in `tokens`.

    One file serves every command that takes such settings, `run` as well as `prune`: those that only the others take
    are ignored. A density on the command line replaces a sparsity in the file, and vice versa. `advise`, which takes
    several methods, takes the file's as the only one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, or settings in a table; names file and line, or the table.

    """
    if not path.is_file():
        raise FileNotFoundError(f"no config file at {path}; `skeletal run --print-config > {path}` writes one")
    try:
        settings: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for key, value in settings.items():
        if isinstance(value, dict) and key != "slurm":
            raise ValueError(f"{path} has a table [{key}]: put settings at the top of the file, outside any table")
    takes = {field.name for record in _USES.get(_command(tokens), ()) for field in fields(record)}
    given = {token.partition("=")[0] for token in tokens}
    for key in list(settings):
        passed_over = key in _EVERY and takes and key not in takes
        overruled = key in ("density", "sparsity") and given & {"--density", "--sparsity"}
        if passed_over or overruled:
            del settings[key]
    if _command(tokens) == "advise" and "method" in settings:
        settings.setdefault("methods", [settings.pop("method")])
    return Dict(settings, use_commands_as_keys=False, source=str(path))


def note(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Keep what is `said`, after the file has been read."""
    said.clear()
    said.update(argument.name for argument in arguments if argument.tokens)


def _command(tokens: Sequence[str]) -> str:
    several = tokens and tokens[0] == "study"
    return " ".join(tokens[: 2 if several else 1])

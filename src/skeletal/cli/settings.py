"""What the commands share: settings from the command line, resolved, shown, and results printed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from skeletal.core import strict_json
from skeletal.core.choices import same_name
from skeletal.core.progress import stage
from skeletal.harness.config import Pruning, Setup, Training, resolve
from skeletal.harness.limits import check
from skeletal.harness.names import NETWORKS

SetupFlags = Annotated[Setup, Parameter(name="*", group="Network and data")]
PruningFlags = Annotated[Pruning, Parameter(name="*", group="Pruning")]
TrainingFlags = Annotated[
    Training, Parameter(name="*", group="Training", consume_multiple=True, negative_iterable="empty-")
]
SlurmFlags = Annotated[dict[str, str] | None, Parameter(negative="")]
Flag = Annotated[bool, Parameter(negative="")]


def resolved(preset: str, *records: Any) -> list[Any]:
    """The records, with unset fields filled in from the preset.

    Raises:
        ValueError: what `resolve` raises; or the method is dense, and a pruning setting is given.

    """
    for record in records:
        check(record)
        if isinstance(record, Pruning) and same_name(record.method, "dense"):
            _refuse_settings_of(record)
    return [_known(resolve(record, preset)) for record in records]


def check_files(out: Path | None = None, *, overwrite: bool = False, plot: Path | None = None) -> None:
    """Refuse files that could not be written, before the work that goes into them; makes their folders.

    Raises:
        ValueError: `out` is there already, and not to be overwritten; or `plot` is not the name of a picture.
        OSError: nothing can be written there.

    """
    from skeletal.core.files import require_writable
    from skeletal.harness.output.figures import require_picture

    if out is not None and out.is_file() and not overwrite:
        raise ValueError(f"{out} already exists: choose another --out, or pass --overwrite")
    if plot is not None:
        require_picture(plot)
    for path in (out, plot):
        if path is not None:
            require_writable(path)


def _known(record: Any) -> Any:
    """A network of another library under that library's name for it; ours need no look-up."""
    if not isinstance(record, Setup) or record.model in NETWORKS:
        return record
    from skeletal.harness import models

    return replace(record, model=models.named(record.model))


def _refuse_settings_of(dense: Pruning) -> None:
    said = [field.name for field in fields(dense) if getattr(dense, field.name) != field.default]
    said = [f"--{name.replace('_', '-')}" for name in said if name != "method"]
    if said:
        raise ValueError(f"the method dense prunes nothing: leave {', '.join(said)} out, or choose another --method")


def print_config(preset: str, *records: Any) -> None:
    """The settings as TOML, which `--config` reads back; what the preset fills in appears as comments."""
    lines = [f"preset = {json.dumps(preset)}"]
    for record, filled in zip(records, resolved(preset, *records), strict=True):
        said, known = asdict(record), asdict(filled)
        for key in said:
            if said[key] is not None:
                lines.append(f"{key} = {_toml(said[key])}")
            elif known[key] is not None and not (key == "density" and said.get("sparsity") is not None):
                lines.append(f"# {key} = {_toml(known[key])}")
    print("\n".join(lines))


def _toml(value: Any) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's, too.
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout, and nothing else."""
    print(strict_json.dumps(value, indent=2, default=str))


def summary(result: dict[str, Any]) -> str:
    """The result of a run in two lines."""
    if result["method"] == "dense":
        what = "dense"
    else:
        method = ", ".join(filter(None, (result["method"], result.get("pattern"))))
        what = (
            f"{method}: kept {result['kept']:,} of {result['prunable']:,} weights"
            f" (density {result['density']:.4g}, sparsity {100 * (1 - result['density']):.4g}%)"
        )
        if result["empty_layers"]:
            what += f", {len(result['empty_layers'])} layers empty"
    test = result["test"]
    by = f", engine {result['engine']}" if result.get("engine", "dense") != "dense" else ""
    return (
        f"{result['model']} on {result['data']}, {what}\n"
        f"test top-1 {test['top1']:.2f}%  top-5 {test['top5']:.2f}%  loss {test['loss']:.4f}"
        f"  after {result['epochs']} epoch{'s' if result['epochs'] != 1 else ''}, {result['seconds']:.1f} s{by}"
    )


def work(jobs: Sequence[Any], root: Path, setup: Setup, what: str, *, executor: str, workers: int) -> None:
    """Do the unfinished jobs, and tell how many are finished.

    Raises:
        ValueError: some have failed, tells each error once; or were done on other data than `setup` names.
        BusyError: another process works on some.

    """
    from skeletal.harness.runs.finding import refuse_unlike
    from skeletal.study.dispatch.launch import counts, launch, refuse_unfinished
    from skeletal.study.paper.collect import error_of

    refuse_unlike(setup, *(job.folder(root) for job in jobs))
    with stage(what, len(jobs), done=counts(jobs, root)["finished"]) as told:

        def report(counted: Any) -> None:
            told.update(counted["finished"], note=f"{counted['failed']} failed" if counted["failed"] else "")

        place = {"data_dir": setup.data_dir, "device": setup.device}
        launch(jobs, root, executor=executor, workers=workers, report=report, **place)
    errors = dict.fromkeys(error for job in jobs if (error := error_of(job.folder(root))))
    if errors:
        raise ValueError("; ".join(errors))
    refuse_unfinished(jobs, root)

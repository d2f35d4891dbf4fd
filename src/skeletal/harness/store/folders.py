"""The folder of one run: what was asked for, where it ran, what it measured, and a result written last.

`runs/<name>-<hash>/` holds `config.json`, `environment.json`, `mask.safetensors`, `metrics.jsonl` (one line
per epoch), `checkpoint/`, `model.safetensors` and `result.json`. The hash is of the settings, so the same
settings find the same folder: a finished run is recognised by its result, a killed one resumes. Whole files
appear by an atomic rename, and `metrics.jsonl` grows by whole lines.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from skeletal.core import strict_json
from skeletal.core.files import failing_at, remove_drafts, write_atomically
from skeletal.core.model.distributed import on_first
from skeletal.core.progress import say
from skeletal.harness.store import run_lock
from skeletal.harness.store.environment import environment

FORMAT = 1
MASK = "mask.safetensors"
STARTING_MASK = "starting-mask.safetensors"
"""of a finished run whose mask has moved; `MASK` is then the one it ended with"""


def _path_as_text(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a run folder keeps JSON; it cannot hold {value!r}, which is a {type(value).__name__}")


def _json(value: Any, **layout: Any) -> str:
    return strict_json.dumps(value, default=_path_as_text, **layout)


_MAY_BE_NAN = ("loss", "train_loss", "val_loss", "test_loss", "force_saliency", "gradient_norm")


def _with_nan(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured; a number that is none was written as null, as JSON has nothing else for it."""
    return {key: math.nan if value is None and key in _MAY_BE_NAN else value for key, value in found.items()}


def read_json(path: Path, **options: Any) -> dict[str, Any]:
    """What a file of a run folder holds; `options` go to `json.loads`.

    Raises:
        ValueError: it is damaged; names it.

    """
    try:
        found = json.loads(path.read_bytes(), **options)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete its folder to run again") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} should hold a JSON object, not {type(found).__name__}; delete its folder to run again"
        )
    return found


_NUMBER = (int, float)
_SETTINGS: dict[str, Any] = {
    "model": str, "data": str, "image_size": int, "validation": _NUMBER, "seed": int, "skip_corrupt": bool,
    "method": str, "density": (*_NUMBER, list), "steps": int, "pattern": str,  # of a sweep several densities
    "epochs": int, "batch_size": int, "lr": _NUMBER, "bf16": bool, "channels_last": bool,
}  # fmt: skip
_RESULT: dict[str, Any] = {
    "model": str, "data": str, "method": str, "density": _NUMBER, "kept": int, "prunable": int, "empty_layers": list,
    "epochs": int, "seconds": _NUMBER,
}  # fmt: skip
_SCORES = dict.fromkeys(("loss", "top1", "top5"), _NUMBER)


def _is(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def damaged(file: Path, how: str) -> ValueError:
    """The error for a file of a run folder that has been edited, or written by something else."""
    return ValueError(f"{file} is damaged ({how}); restore it, or delete its folder to run again")


def _refuse_other_kinds(file: Path, found: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for name, kind in kinds.items():
        if (value := found.get(name)) is not None and not _is(value, kind):
            raise damaged(file, f"{name} is {str(value)[:60]!r}")


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, sound or damaged: others may have a `config.json`, too."""
    if not (path / "config.json").is_file():
        return False
    if (path / "environment.json").is_file():
        return True
    try:
        found = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "format" in found and "seed" in found


def mask_file(path: Path | str) -> Path:
    """The mask file at a path, which may also be the folder of a run.

    Raises:
        ValueError: the run is dense.

    """
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / MASK).exists() and RunFolder.at(path).finished:
        raise ValueError(f"{path} is a dense run: it has no mask, all its weights are kept")
    return path / MASK


@dataclass(frozen=True)
class RunFolder:
    """One run on disk; make one with `RunFolder.open`."""

    path: Path
    config: dict[str, Any]
    """the resolved settings, as JSON gives them back"""
    scratch: bool = False
    """a measurement's own, deleted with it: nobody resumes it"""

    @classmethod
    def open(
        cls, root: Path | str, name: str, config: dict[str, Any], fingerprint: Mapping[str, str] | None = None
    ) -> "RunFolder":
        """Find or create the folder of the run called `name` with the settings `config`.

        A new one keeps the `fingerprint` of what its settings name, such as the data.

        Raises:
            ValueError: `name` is not a folder name, the folder was written by another version of its format, or
                its `config.json` holds other settings than `config`.
            TypeError: `config` does not fit into JSON (paths do, as text).

        """
        folder = cls.find(root, name, config)
        file = folder.path / "config.json"
        if not file.exists():
            folder.path.mkdir(parents=True, exist_ok=True)
            where = environment() | {"fingerprint": dict(fingerprint or {})}
            write_atomically(folder.path / "environment.json", _json(where, indent=2) + "\n")
            write_atomically(file, _json({"format": FORMAT, **folder.config}, indent=2) + "\n")
        return folder

    @classmethod
    def find(cls, root: Path | str, name: str, config: dict[str, Any]) -> "RunFolder":
        """Where that run's folder is or would be; creates nothing. Raises as `open` does."""
        if name in ("", ".", "..") or PurePath(name).name != name:
            raise ValueError(f"a run needs a plain folder name, got {name!r}")
        if "format" in config:
            raise ValueError("'format' is the run folder's own key; rename that setting")
        canonical = _json(config, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        folder = cls(Path(root) / f"{name}-{digest}", json.loads(canonical))
        file = folder.path / "config.json"
        if file.exists():
            folder._refuse_other_settings(read_json(file))
        return folder

    @classmethod
    def at(cls, path: Path | str) -> "RunFolder":
        """The run folder at a path.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was written by another version of its format, or is damaged.

        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path} is not a run folder: it has no config.json")
        if not is_run(path):
            raise FileNotFoundError(f"{path} is not a run folder: its config.json was written by another program")
        folder = cls(path, read_json(path / "config.json"))
        folder._refuse_other_format(folder.config.pop("format", None))
        _refuse_other_kinds(path / "config.json", folder.config, _SETTINGS)
        return folder

    def setting(self, name: str) -> Any:
        """A setting that a run of its kind has.

        Raises:
            ValueError: it is missing.

        """
        if self.config.get(name) is None:
            raise damaged(self.path / "config.json", f"{name} is missing")
        return self.config[name]

    def _refuse_other_format(self, written: object) -> None:
        if written != FORMAT:
            raise ValueError(
                f"{self.path / 'config.json'} has format {written!r}, this skeletal reads {FORMAT}; "
                "use the version that wrote it, or another root folder"
            )

    def _refuse_other_settings(self, found: dict[str, Any]) -> None:
        self._refuse_other_format(found.pop("format", None))
        if found != self.config:
            names = sorted(found.keys() | self.config.keys())
            changed = [name for name in names if found.get(name) != self.config.get(name)]
            raise ValueError(
                f"{self.path / 'config.json'} holds other settings than this run's ({', '.join(changed)}); "
                "it was edited by hand: restore it, or delete the folder to run again"
            )

    @property
    def fingerprint(self) -> dict[str, str]:
        """What `open` was given; empty for runs of earlier versions."""
        file = self.path / "environment.json"
        found = read_json(file).get("fingerprint", {}) if file.exists() else {}
        if not isinstance(found, dict) or not all(isinstance(value, str) and value for value in found.values()):
            raise damaged(file, f"fingerprint is {str(found)[:60]!r}")
        return found

    def unlike(self, here: Mapping[str, str]) -> str:
        """What the run was made of and is otherwise here, for people; empty if nothing is, or is known to be."""
        there = self.fingerprint
        other = [name for name, value in here.items() if there.get(name, value) != value]
        return "; ".join(f"the {name} was {there[name]}, and is {here[name]}" for name in other)

    def refuse_unlike(self, here: Mapping[str, str]) -> None:
        """Keep a run from being mixed with another of the same settings.

        Raises:
            ValueError: something that it was made of is otherwise `here`.

        """
        if unlike := self.unlike(here):
            raise ValueError(
                f"{self.path} is a run of the same settings on something else ({unlike}): put that back as it was, or"
                " choose another --out"
            )

    @property
    def _lock(self) -> Path:
        # Beside the folder, which does not exist before the settings have proved sound.
        return self.path.with_name(f".{self.path.name}.lock")

    @contextmanager
    def claim(self, *, wait: bool = False) -> Generator[None]:
        """Keep every other process from working on this run inside the `with` block; whether the folder exists or not.

        The lock is `flock`'s, on `.<folder>.lock` beside the folder: it is released when its process dies, however it
        dies. What a killed writer left half-written in the folder is removed. Claiming again in the same thread is
        free.

        Args:
            wait: for the current holder to end, with a warning; check `finished` afterwards.

        Raises:
            BusyError: another process holds it; the message says which one, on which machine, and since when.

        Warns:
            UserWarning: the file system has no locks, so nothing keeps other processes out.

        """
        with run_lock.claim(self._lock, str(self.path), wait=wait):
            remove_drafts(self.path)
            yield

    def once(self, work: Callable[[], dict[str, Any]], *, wait: bool = False) -> dict[str, Any]:
        """The result of a job that is done once: what its folder holds, or else what `work` returns.

        The run is claimed while `work` runs, and what that returns becomes the folder's result. `work` must make the
        folder itself. In a process group all ranks call this; rank 0 claims and writes for all.

        Args:
            work: does the job.
            wait: see `claim`; what the other process has finished meanwhile is not done again.

        Raises:
            BusyError: another process is at work on the same run.

        """
        if on_first(lambda: self.finished):
            say(f"already finished: {self.path}")
            return self.result()
        with ExitStack() as held:
            on_first(lambda: held.enter_context(self.claim(wait=wait)))
            if on_first(lambda: self.finished):  # by the process that had it until just now
                return self.result()
            result = work()
            on_first(partial(self.finish, result))
            return result

    @property
    def running(self) -> bool:
        """Whether a process has claimed this run just now."""
        return run_lock.is_claimed(self._lock)

    @property
    def finished(self) -> bool:
        """Whether the run has left its result."""
        return (self.path / "result.json").exists()

    def result(self) -> dict[str, Any]:
        """What `finish` was given.

        Raises:
            FileNotFoundError: the run has not finished.
            ValueError: it is damaged.

        """
        file = self.path / "result.json"
        found = read_json(file, object_hook=_with_nan)
        _refuse_other_kinds(file, found, _RESULT)
        if "test" in found:  # else it was not trained
            scores = found["test"] if isinstance(found["test"], dict) else {}
            if not _is(scores.get("top1"), _NUMBER):
                raise damaged(file, f"test is {str(found['test'])[:60]}")
            _refuse_other_kinds(file, scores, _SCORES)
        return found

    def finish(self, result: dict[str, Any]) -> None:
        """Leave the result, atomically. From here on the run counts as finished."""
        write_atomically(self.path / "result.json", _json(result, indent=2) + "\n")

    @property
    def _log(self) -> Path:
        return self.path / "metrics.jsonl"

    def _whole_lines(self) -> bytes:
        content = self._log.read_bytes() if self._log.exists() else b""
        return content[: content.rfind(b"\n") + 1]

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, oldest first, without a last one that a kill left half-written.

        Raises:
            ValueError: another line is damaged.

        """
        rows = []
        for number, line in enumerate(self._whole_lines().splitlines(), 1):
            try:
                row = json.loads(line, object_hook=_with_nan)
                if not isinstance(row, dict) or type(row.get("epoch")) is not int:
                    raise ValueError("it should be a JSON object with an epoch")
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{self._log}, line {number} is damaged ({error}); delete the folder to run again"
                ) from None
            rows.append(row)
        return rows

    def append(self, metrics: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`; it is on disk when this returns."""
        line = _json(metrics) + "\n"
        with failing_at(self._log), open(self._log, "ab", buffering=0) as file:
            size = len(self._whole_lines())
            file.truncate(size)
            try:
                # Unbuffered, so that what a full disk has refused is not written again on closing.
                if file.write(line.encode()) < len(line.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    def truncate_metrics(self, epoch: int) -> None:
        """Drop the lines of `epoch` and later: a run that resumes there will write them again."""
        if self._log.exists():
            kept = [row for row in self.metrics() if row["epoch"] < epoch]
            write_atomically(self._log, "".join(_json(row) + "\n" for row in kept))

"""A run's numbers where people keep those of their other runs: a CSV file, Weights & Biases, MLflow.

Each is told through its own library, under the same names as TensorBoard: `train/loss`, `val/top1`, `lr`.
"""

import csv
import io
import os
from typing import Any

from skeletal.core.extras import extra
from skeletal.core.files import write_atomically
from skeletal.harness.store.folders import RunFolder

PROJECT = "skeletal"


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of an epoch, a line of `metrics.jsonl`, under the names that all loggers use."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    return {name.replace("_", "/", 1): value for name, value in numbers.items() if name != "epoch"}


class Csv:
    """Keeps `metrics.csv` in the run's folder: one line per epoch, one column per number."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def epoch(self, row: dict[str, Any]) -> None:
        """Write the file anew, from all lines of `metrics.jsonl`: a resumed run may have dropped some."""
        rows = [{"epoch": each["epoch"]} | scalars(each) for each in self._folder.metrics()]
        out = io.StringIO()
        writer = csv.DictWriter(out, list(dict.fromkeys(name for each in rows for name in each)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._folder.path / "metrics.csv", out.getvalue())

    def close(self) -> None:
        """Nothing is open."""


class WandB:
    """Logs to Weights & Biases, in the project `skeletal`; `WANDB_MODE=offline` keeps everything in the run's folder.

    A resumed run continues under the same id, the name of its folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        with extra("wandb"):
            import wandb  # type: ignore[missing-import]

        name = folder.path.name
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(
            project=project, name=name, id=name[-64:], resume="allow", dir=str(folder.path), config=folder.config
        )

    def epoch(self, row: dict[str, Any]) -> None:
        """Log the metrics of an epoch."""
        self._run.log(scalars(row), step=row["epoch"])

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MLflow:
    """Logs to MLflow, experiment `skeletal`: at `MLFLOW_TRACKING_URI`, or else in `mlflow.db` beside the run folders.

    A resumed run continues the same MLflow run, which is known by the name of its folder.

    Args:
        folder: of the run.
        start: the epoch that comes next, from 0.

    """

    def __init__(self, folder: RunFolder, *, start: int = 0) -> None:
        with extra("mlflow"):
            from mlflow import MlflowClient  # type: ignore[missing-import]

        root = folder.path.parent.absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
        self._client, self._epochs = MlflowClient(uri), folder.config.get("epochs")
        self._last = start
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        tag = {"skeletal.folder": folder.path.name}
        earlier = self._client.search_runs([experiment], f"tags.`skeletal.folder` = '{folder.path.name}'")
        run = earlier[0] if earlier else self._client.create_run(experiment, tags=tag, run_name=folder.path.name)
        self._id = run.info.run_id
        if not earlier:
            for key, value in folder.config.items():
                self._client.log_param(self._id, key, value)

    def epoch(self, row: dict[str, Any]) -> None:
        """Log the metrics of an epoch."""
        self._last = row["epoch"] + 1
        for name, value in scalars(row).items():
            self._client.log_metric(self._id, name, value, step=row["epoch"])

    def close(self) -> None:
        """Say whether the run has finished."""
        self._client.set_terminated(self._id, "FINISHED" if self._last == self._epochs else "KILLED")

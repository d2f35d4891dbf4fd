"""CSV, Weights & Biases and MLflow, each offline, read back through their own files and clients."""

import csv
import json
import struct
import time
from dataclasses import replace

import pytest

from skeletal.harness.console.loggers import MLflow, scalars
from skeletal.harness.console.trackers import Several, names_of
from skeletal.harness.store.folders import RunFolder
from skeletal.harness.training.train import train
from tests.harness.training.blobs import TRAINING, blobs, mlp


def run(tmp_path, *loggers, epochs=3):
    folder = RunFolder.open(tmp_path, "run", {"epochs": 3, "lr": 0.05})
    training = replace(TRAINING, log=loggers, epochs=epochs)
    train(mlp(), blobs(), training, folder=folder, device="cpu", progress=False)
    return folder


def expected(folder):
    return [scalars(row) for row in folder.metrics()]


def test_every_logger_has_the_same_names():
    row = {"epoch": 3, "train_loss": 0.5, "val_top1": 90.0, "lr": 0.1, "engine": "dense", "seconds": 2}
    assert scalars(row) == {"train/loss": 0.5, "val/top1": 90.0, "lr": 0.1, "seconds": 2}
    training = replace(TRAINING, log=("csv", "tensorboard"), tensorboard=True)
    assert names_of(training) == ("csv", "tensorboard") and names_of(TRAINING) == ()


def test_a_csv_file_has_a_line_an_epoch_and_a_column_a_number(tmp_path):
    folder = run(tmp_path, "csv")
    with open(folder.path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row.pop("epoch")) for row in rows] == [0, 1, 2]
    assert [{name: float(value) for name, value in row.items() if value} for row in rows] == expected(folder)
    assert "test/top1" in rows[2] and rows[0]["test/top1"] == ""


@pytest.mark.parametrize(("name", "said"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_what_is_not_installed_is_refused_before_training(tmp_path, monkeypatch, name, said):
    monkeypatch.setattr("skeletal.harness.console.trackers.find_spec", lambda package: None)
    with pytest.raises(ValueError, match=rf"{said} is not installed: pip install 'skeletal\[{name}\]'"):
        run(tmp_path, name)
    with pytest.raises(ValueError, match=r"unknown logger 'wandbb'\. Did you mean 'wandb'"):
        run(tmp_path, "wandbb")
    assert not list(tmp_path.glob("*/metrics.jsonl"))


def test_all_are_closed_though_one_of_them_fails():
    closed = []

    class Failing:
        def close(self):
            closed.append("failing")
            raise OSError("no network")

    class Sound:
        def close(self):
            closed.append("sound")

    with pytest.raises(OSError, match="no network"):
        Several([Sound(), Failing(), Sound()]).close()
    assert sorted(closed) == ["failing", "sound", "sound"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_offline(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = run(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("skeletal").experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == folder.path.name
    assert found.data.params == {"epochs": "3", "lr": "0.05"}
    for name in scalars(folder.metrics()[-1]):
        history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, name)}
        assert history == {row["epoch"]: scalars(row)[name] for row in folder.metrics() if name in scalars(row)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_learns_that_a_run_ended_in_a_session_without_an_epoch(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = run(tmp_path, "mlflow", epochs=2)  # of 3
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for start, status in ((2, "KILLED"), (3, "FINISHED")):
        MLflow(folder, start=start).close()
        (found,) = client.search_runs([client.get_experiment_by_name("skeletal").experiment_id])
        assert found.info.status == status


def level_db_records(log):
    """What a LevelDB log holds, without its first 7 bytes: records in pieces, which no block of 32 KiB cuts."""
    place, whole = 7, b""
    while len(log) + 7 - place > 7:
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", log, place - 7)
        whole += log[place : place + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""


def history(log):
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for data in level_db_records(log.read_bytes()[7:]):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            found.append({key: json.loads(value) for key, value in items.items() if not key.startswith("_")})
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = run(tmp_path, "wandb")
    (place,) = (folder.path / "wandb").glob("offline-run-*")
    (log,) = place.glob("*.wandb")
    assert log.stem == f"run-{folder.path.name}"
    deadline = time.monotonic() + 30  # wandb's own process writes the file, a little later
    while (logged := history(log)) != expected(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert logged == expected(folder)

import errno
import json
import math
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skeletal.core.errors import BusyError
from skeletal.core.files import remove_drafts, write_atomically
from skeletal.harness.store import environment as environment_module
from skeletal.harness.store.environment import environment
from skeletal.harness.store.folders import RunFolder

CONFIG = {"model": "tiny", "data_dir": Path("somewhere"), "milestones": (0.5, 0.75)}


@pytest.fixture
def folder(tmp_path):
    return RunFolder.open(tmp_path / "runs", "tiny", CONFIG)


def files(path):
    return sorted(p.name for p in path.iterdir())


def test_the_folder_says_what_and_where(folder):
    assert folder.path.name.startswith("tiny-") and len(folder.path.name) == len("tiny-") + 8
    assert files(folder.path) == ["config.json", "environment.json"]
    written = json.loads((folder.path / "config.json").read_text())
    assert written == {"format": 1, "model": "tiny", "data_dir": "somewhere", "milestones": [0.5, 0.75]}
    assert json.loads((folder.path / "environment.json").read_text())["python"]


def test_the_same_settings_find_the_same_folder_in_any_order(folder):
    root = folder.path.parent
    again = RunFolder.open(root, "tiny", dict(reversed(CONFIG.items())))
    assert again == folder
    assert RunFolder.open(root, "tiny", {**CONFIG, "model": "other"}).path != folder.path


def never():
    raise AssertionError("done again")


def test_a_job_is_done_once(folder):
    def work():
        assert folder.running and not folder.finished
        return {"top1": 90}

    assert folder.once(work) == {"top1": 90} == folder.result()
    assert not folder.running
    assert folder.once(never) == {"top1": 90}


def test_a_job_that_fails_may_be_tried_again(folder):
    with pytest.raises(AssertionError, match="done again"):
        folder.once(never)
    assert not folder.running and not folder.finished
    assert folder.once(dict) == {} == folder.result()


@pytest.mark.filterwarnings("ignore:.*waiting for it to end")
def test_what_another_has_finished_while_we_waited_is_not_done_again(folder):
    claimed = threading.Event()

    def work():
        claimed.set()
        time.sleep(0.2)
        return {"by": "the other"}

    other = threading.Thread(target=folder.once, args=(work,))
    other.start()
    assert claimed.wait(10)
    with pytest.raises(BusyError):
        folder.once(never)
    assert folder.once(never, wait=True) == {"by": "the other"}
    other.join()


def test_a_finished_run_is_known_by_its_result(folder):
    assert not folder.finished
    with pytest.raises(FileNotFoundError):
        folder.result()
    folder.finish({"top1": 93.5})
    again = RunFolder.open(folder.path.parent, "tiny", CONFIG)
    assert again.finished and again.result() == {"top1": 93.5}


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_names_that_leave_the_root_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="plain folder name"):
        RunFolder.open(tmp_path, name, {})


def test_settings_that_json_cannot_hold_are_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match="set"):
        RunFolder.open(tmp_path, "tiny", {"layers": {1, 2}})
    with pytest.raises(ValueError, match="'format'"):
        RunFolder.open(tmp_path, "tiny", {"format": 7})


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"format": 1, "model": "edited"}', "other settings.*data_dir, milestones, model"),
        ('{"format": 2, "model": "tiny"}', "format 2.*reads 1"),
        ("{}", "format None"),
        ('{"format": 1', "damaged"),
        ("[]", "JSON object"),
    ],
)
def test_a_config_that_was_touched_is_refused(folder, content, message):
    (folder.path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        RunFolder.open(folder.path.parent, "tiny", CONFIG)


def test_a_folder_killed_before_its_config_was_written_is_completed(folder):
    (folder.path / "config.json").unlink()
    assert RunFolder.open(folder.path.parent, "tiny", CONFIG) == folder
    assert (folder.path / "config.json").exists()


def test_metrics_come_back_as_they_were_given(folder):
    assert folder.metrics() == []
    rows = [{"epoch": 0, "loss": 0.1 + 0.2}, {"epoch": 1, "loss": 4.0}]
    for row in rows:
        folder.append(row)
    assert folder.metrics() == rows


def test_a_half_written_last_line_is_dropped(folder):
    folder.append({"epoch": 0})
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 1, "lo')
    assert folder.metrics() == [{"epoch": 0}]
    folder.append({"epoch": 1})
    assert folder.metrics() == [{"epoch": 0}, {"epoch": 1}]


def test_any_other_damaged_line_is_an_error(folder):
    (folder.path / "metrics.jsonl").write_text('{"epoch": 0}\noops\n{"epoch": 2}\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        folder.metrics()


@pytest.mark.parametrize("row", ["[]", "3", "{}", '{"epoch": "0"}', '{"epoch": true}', "[" * 5000])
def test_a_line_that_is_no_epoch_is_an_error(folder, row):
    (folder.path / "metrics.jsonl").write_text(f'{{"epoch": 0}}\n{row}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged.*delete the folder"):
        folder.metrics()


@pytest.mark.parametrize("written", [0, 5])
def test_a_disk_that_fills_up_leaves_whole_lines(folder, monkeypatch, written):
    folder.append({"epoch": 0})

    def full(*_):
        with open(folder.path / "metrics.jsonl", "ab") as file:
            file.write(b'{"epo'[:written])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left.*'.*metrics\.jsonl'"):
        patch.setattr(os, "fsync", full)
        folder.append({"epoch": 1})
    assert (folder.path / "metrics.jsonl").read_text() == '{"epoch": 0}\n'
    folder.append({"epoch": 1})
    assert folder.metrics() == [{"epoch": 0}, {"epoch": 1}]


def test_truncation_keeps_the_earlier_epochs(folder):
    folder.truncate_metrics(0)  # nothing there yet
    for epoch in range(4):
        folder.append({"epoch": epoch})
    folder.truncate_metrics(2)
    assert folder.metrics() == [{"epoch": 0}, {"epoch": 1}]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, broken, old):
    path = tmp_path / "file"
    if old:
        write_atomically(path, old)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert files(tmp_path) == (["file"] if old else [])
    assert not old or path.read_text() == old


def test_a_failed_write_names_the_file_and_not_its_draft(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as raised:
        write_atomically(tmp_path / "file", b"new")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(tmp_path / "nowhere" / "file", b"new")
    assert missing.value.filename == str(tmp_path / "nowhere" / "file")


def test_threads_may_write_to_one_file(tmp_path):
    path, contents = tmp_path / "file", [bytes([i]) * (1 + i << 18) for i in range(4)]

    def write(content):
        for _ in range(10):
            write_atomically(path, content)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(len(contents)) as threads:
        list(threads.map(write, contents))
    assert files(tmp_path) == ["file"]


def test_drafts_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in (".file.12.tmp", "inner/.state.pt.7.tmp", "file", ".hidden", "file.tmp"):
        (tmp_path / name).touch()
    remove_drafts(tmp_path)
    remove_drafts(tmp_path / "nowhere")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        ".hidden", "file", "file.tmp", "inner",
    ]  # fmt: skip


def test_a_written_file_obeys_the_umask(tmp_path):
    write_atomically(tmp_path / "a", "ä")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").read_bytes() == "ä".encode()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_the_environment_survives_anything_missing(monkeypatch):
    full = environment()
    assert full["versions"]["torch"] and full["threads"] >= 1

    def missing(*_, **__):
        raise FileNotFoundError

    for thing in ("Path.read_text", "os.sysconf", "subprocess.run", "torch.cuda.device_count"):
        monkeypatch.setattr(f"{environment_module.__name__}.{thing}", missing)
    bare = environment()
    assert bare.keys() == full.keys()
    assert bare["checkout"] is bare["memory_gib"] is bare["gpus"] is None
    json.dumps(bare)


def test_the_commit_of_a_foreign_checkout_is_not_reported(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(environment_module, "__file__", str(tmp_path / "environment.py"))
    assert environment()["checkout"] is None


def strictly(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_is_no_number_is_null_in_json_and_comes_back_as_nan(folder):
    folder.append({"epoch": 0, "train_loss": math.nan, "step": None})
    folder.finish({"test": {"top1": 10.0, "loss": math.inf}, "validation": None})
    assert strictly((folder.path / "metrics.jsonl").read_text())["train_loss"] is None
    assert strictly((folder.path / "result.json").read_text())["test"]["loss"] is None
    (row,), result = folder.metrics(), folder.result()
    assert math.isnan(row["train_loss"]) and row["step"] is None
    assert math.isnan(result["test"]["loss"]) and result["validation"] is None
    for kind in ("NaN", "Infinity"):  # as earlier versions wrote it
        (folder.path / "result.json").write_text(f'{{"test": {{"top1": 10.0, "loss": {kind}}}}}')
        assert not math.isfinite(folder.result()["test"]["loss"])


@pytest.mark.parametrize(
    ("file", "change", "told", "look"),
    [
        ("config.json", {"model": 3}, "model is '3'", lambda run: RunFolder.at(run.path)),
        ("config.json", {"seed": "0"}, "seed is '0'", lambda run: RunFolder.at(run.path)),
        ("config.json", {"epochs": True}, "epochs is 'True'", lambda run: RunFolder.at(run.path)),
        ("config.json", {"model": None}, "model is missing", lambda run: RunFolder.at(run.path).setting("model")),
        ("environment.json", {"fingerprint": None}, "fingerprint is 'None'", lambda run: run.fingerprint),
        ("environment.json", {"fingerprint": {"data": 1}}, "fingerprint is", lambda run: run.fingerprint),
        ("result.json", {"test": None}, "test is None", lambda run: run.result()),
        ("result.json", {"test": {"loss": 1.0}}, "test is {'loss': 1.0}", lambda run: run.result()),
        ("result.json", {"test": {"top1": 1.0, "top5": "x"}}, "top5 is 'x'", lambda run: run.result()),
        ("result.json", {"density": "x"}, "density is 'x'", lambda run: run.result()),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_file(folder, file, change, told, look):
    folder.finish({"top1": 93.5})
    path = folder.path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as refused:
        look(folder)
    assert str(refused.value).startswith(f"{path} is damaged ({told}")

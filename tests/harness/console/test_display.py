"""What a training shows on a terminal, and where there is none."""

from dataclasses import replace

import pytest

from tests.harness.training.blobs import TRAINING, blobs, mlp, run


def test_one_line_per_epoch_where_there_is_no_terminal(capsys):
    run(mlp(), blobs())
    assert capsys.readouterr().err == ""
    run(mlp(), blobs(), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[2].startswith("epoch 3/3  loss ")


@pytest.mark.parametrize("able", [True, False])
def test_a_long_training_on_a_cpu_is_told_of_bfloat16_once(tmp_path, capsys, monkeypatch, able):
    monkeypatch.setattr("skeletal.harness.training.trainer.LONG", 5)
    monkeypatch.setattr("skeletal.harness.console.display.multiplies_bfloat16", lambda: able)
    run(mlp(), blobs(), progress=True)
    assert capsys.readouterr().err.count("--bf16 may take half the time") == able
    run(mlp(), blobs(), replace(TRAINING, bf16=True), progress=True)
    assert "--bf16" not in capsys.readouterr().err


def test_a_bar_with_the_time_left_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    run(mlp(), blobs(), progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "0:00:00" in shown and "validation" in shown

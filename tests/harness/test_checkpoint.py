import os

import pytest
import torch

from skeletal.harness import checkpoint

STATE = {"weights": torch.arange(3.0), "epoch": 2, "settings": {"lr": 0.1, "milestones": (0.5,)}}


class Trap:
    """Unpickled carelessly, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_state_comes_back(tmp_path):
    assert checkpoint.load(tmp_path) is None
    checkpoint.save(tmp_path, STATE)
    state = checkpoint.load(tmp_path)
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {"format": 1, "epoch": 2, "settings": STATE["settings"]}


def test_the_last_good_state_survives_a_failed_write(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, STATE)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, {"epoch": 3})
    assert checkpoint.load(tmp_path)["epoch"] == 2
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["state.pt"]


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    checkpoint.save(tmp_path, {"trap": Trap(tmp_path / "sprung")})
    with pytest.raises(ValueError, match=r"state\.pt is damaged or not a checkpoint.*delete it"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_truncated_file_is_named_with_the_remedy(tmp_path, keep):
    checkpoint.save(tmp_path, STATE)
    file = tmp_path / "checkpoint" / "state.pt"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else keep])
    with pytest.raises(ValueError, match=r"state\.pt is damaged.*delete it"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("foreign", [[1, 2], {"model": {}}, torch.zeros(2)])
def test_a_foreign_file_is_refused(tmp_path, foreign):
    (tmp_path / "checkpoint").mkdir()
    torch.save(foreign, tmp_path / "checkpoint" / "state.pt")
    with pytest.raises(ValueError, match="not a checkpoint of skeletal"):
        checkpoint.load(tmp_path)


def test_another_format_is_refused(tmp_path):
    checkpoint.save(tmp_path, {"format": 2})
    with pytest.raises(ValueError, match=r"format 2.*reads 1"):
        checkpoint.load(tmp_path)

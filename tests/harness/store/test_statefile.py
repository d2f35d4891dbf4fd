import os
import zipfile

import pytest
import torch

from skeletal.core.files import atomic_file
from skeletal.harness.store import statefile

STATE = {
    "settings": {"lr": 0.1, "milestones": (0.5,)}, "engine": {"asked": "dense"},
    "model": {"weight": torch.arange(3000.0)}, "optimizer": {}, "scheduler": {}, "tally": {}, "epoch": 2, "batch": 0,
    "epoch_seconds": 0.0, "seconds": 1.5, "rng": torch.get_rng_state(), "cuda_rng": None,
}  # fmt: skip
REFUSED = r"state\.pt is damaged or not a checkpoint of skeletal \({}.*delete it"


class Trap:
    """Unpickled carelessly, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def file(tmp_path):
    statefile.save(tmp_path, STATE)
    return statefile.path_in(tmp_path)


def rewrite(file, change=lambda name, content: content, **options):
    """Write the archive again with each entry's content changed."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def refused(tmp_path, reason=""):
    with pytest.raises(ValueError, match=REFUSED.format(reason)):
        statefile.load(tmp_path)


def test_a_state_comes_back(tmp_path, file):
    assert statefile.load(tmp_path / "elsewhere") is None
    state = statefile.load(tmp_path)
    for part in ("model", "rng"):
        tensors, expected = state.pop(part), STATE[part]
        if part == "model":
            tensors, expected = tensors["weight"], expected["weight"]
        assert torch.equal(tensors, expected)
    assert state == {"format": 1, **{name: value for name, value in STATE.items() if name not in ("model", "rng")}}


def test_an_archive_written_again_is_still_one(tmp_path, file):
    rewrite(file)  # or the tests below would fail for another reason than theirs
    assert statefile.load(tmp_path)["epoch"] == 2


def test_the_last_good_state_survives_a_failed_write(tmp_path, file, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*state\.pt'"):
        statefile.save(tmp_path, STATE | {"epoch": 3})
    assert statefile.load(tmp_path)["epoch"] == 2
    assert [p.name for p in file.parent.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("writes", range(0, 40, 3))
def test_a_disk_that_fills_up_while_torch_writes_is_told_as_such(tmp_path, writes):
    class Small:
        def __init__(self, file):
            self.file, self.left = file, writes

        def write(self, content):
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(content)

        def flush(self):
            self.file.flush()

    full = pytest.raises(OSError, match=r"No space left on device: '.*state\.pt'")
    with full as raised, atomic_file(tmp_path / "state.pt") as file:
        torch.save({"format": 1, **STATE}, Small(file))
    assert raised.value.errno == 28 and list(tmp_path.iterdir()) == []


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    statefile.save(tmp_path, STATE | {"trap": Trap(tmp_path / "sprung")})
    refused(tmp_path, "Weights only load failed")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_truncated_file_is_named_with_the_remedy(tmp_path, file, keep):
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else keep])
    refused(tmp_path)


def test_bytes_after_the_end_are_refused(tmp_path, file):
    with open(file, "ab") as end:
        end.write(b"more")
    refused(tmp_path, "it does not end where its archive ends")


@pytest.mark.parametrize("part", range(20))
def test_a_flipped_bit_is_not_another_state(tmp_path, file, part):
    content = bytearray(file.read_bytes())
    content[len(content) * part // 20 + 7] ^= 4
    file.write_bytes(content)
    try:
        state = statefile.load(tmp_path)
    except ValueError as error:
        assert str(file) in str(error) and "delete it" in str(error)
    else:  # in the padding between entries, or in a time stamp
        assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
        assert torch.equal(state["rng"], STATE["rng"])


def test_a_tensor_larger_than_its_data_allocates_nothing(tmp_path, file):
    claimed = (10**9).to_bytes(4, "little")

    def lie(name, content):
        numel = (3000).to_bytes(2, "little")  # twice: of the storage and of the tensor
        assert "data.pkl" not in name or content.count(b"M" + numel) == 2
        return content.replace(b"M" + numel, b"J" + claimed) if name.endswith("data.pkl") else content

    rewrite(file, lie)
    refused(tmp_path)


def test_an_archive_that_grows_when_unpacked_is_refused(tmp_path, file):
    rewrite(file, compression=zipfile.ZIP_DEFLATED)
    refused(tmp_path, "an entry is compressed")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_the_same_name_are_refused(tmp_path, file):
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(archive.namelist()[0], b"")
    refused(tmp_path, "two entries have the same name")


def test_a_name_that_leaves_the_archive_is_refused(tmp_path, file):
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../../sprung", b"")
    refused(tmp_path, ".*not in a subdirectory")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoint", "state.pt"]


@pytest.mark.parametrize(
    ("foreign", "reason"),
    [
        ([1, 2], "it holds no run"),
        ({"model": {}}, "it holds no run"),
        (torch.zeros(2), "it holds no run"),
        ({"format": 1}, "settings should be dict, not NoneType"),
        ({**STATE, "format": 1, "epoch": "2"}, "epoch should be int, not str"),
        ({**STATE, "format": 1, "batch": -1}, "epoch 2, batch -1"),
        ({**STATE, "format": 1, "model": {"weight": 3}}, "the model's 'weight' is no tensor"),
        ({**STATE, "format": 1, "engine": {}}, "the engine is {}"),
        ({**STATE, "format": 1, "engine": {"asked": "auto", "paths": 3}}, "the engine's choice"),
        ({**STATE, "format": 1, "update": {"step": "2"}}, "the moving mask's steps are incomplete"),
        ({**STATE, "format": 1, "update": {"step": 2, "begun_with": 9, "mask": {"weight": 3}}},
         "the moving mask is incomplete"),
    ],
)  # fmt: skip
def test_a_foreign_file_is_refused(tmp_path, file, foreign, reason):
    torch.save(foreign, file)
    refused(tmp_path, reason)


def test_another_format_is_refused_and_not_called_damaged(tmp_path):
    statefile.save(tmp_path, STATE | {"format": 2})
    with pytest.raises(ValueError, match=r"state\.pt has format 2.*reads 1; use the version that wrote it"):
        statefile.load(tmp_path)

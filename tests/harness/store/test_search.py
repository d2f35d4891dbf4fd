import pytest

from skeletal.harness.store.folders import RunFolder
from skeletal.harness.store.search import runs_below


def test_links_are_followed_and_end(tmp_path):
    root, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    here = RunFolder.open(root / "a", "tiny", {"seed": 0}).path
    there = RunFolder.open(elsewhere / "deep", "tiny", {"seed": 1}).path
    (root / "linked-run").symlink_to(there)
    (root / "linked-root").symlink_to(elsewhere)
    (root / "a" / "again").symlink_to(root)
    (root / "broken").symlink_to(tmp_path / "nothing")
    assert [folder.path for folder in runs_below(root)] == [here, root / "linked-root" / "deep" / there.name]
    assert [folder.path for folder in runs_below(root / "linked-run")] == [root / "linked-run"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="file is not a folder: name run folders"):
        list(runs_below(tmp_path / "file"))

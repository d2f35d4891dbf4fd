"""Files that appear whole, wherever their path leads."""

import os
import threading

import pytest

from skeletal.core.files import require_writable, write_atomically


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "file", tmp_path / "link"
    link.symlink_to(file)
    for text in ("first", "second"):  # the file is not there yet, then it is
        require_writable(link)
        write_atomically(link, text)
        assert link.is_symlink() and file.read_text() == text
    assert os.listdir(tmp_path / "there") == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_a_pipe_is_written_to(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    require_writable(pipe)
    write_atomically(pipe, "text")
    reader.join()
    assert read == ["text"] and os.listdir(tmp_path) == ["pipe"]


def test_nothing_is_made_of_a_folder(tmp_path):
    for write in (require_writable, lambda path: write_atomically(path, "")):
        with pytest.raises(IsADirectoryError):
            write(tmp_path)

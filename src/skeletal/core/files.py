"""Files that appear whole or not at all."""

import errno
import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def failing_at(path: str | Path) -> Generator[None]:
    """Let an `OSError` say which file it is about, which a failed write (a full disk) does not."""
    try:
        yield
    except Exception as error:
        # torch.save's writer fails again while it cleans up, and the second error hides the first.
        first = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(first, OSError) and first.errno and first.strerror:
            raise OSError(first.errno, first.strerror, str(path)) from error
        raise


@contextmanager
def atomic_file(path: str | Path) -> Generator[IO[bytes]]:
    """A binary file that appears at `path` when the block ends, whole and on disk, or not at all.

    Raises:
        OSError: it cannot be written, with `path` as its file name; any earlier file is still there.

    """
    # Not `tempfile`, whose files only the owner may read. Threads, too, may write to one path.
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
    with failing_at(path):
        try:
            with open(draft, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Put `content` (text as UTF-8) at `path`; a reader sees the old file or the new, never a part."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def require_writable(path: str | Path) -> None:
    """Check that a file can be written there, for work that would be lost if it could not; makes its folder.

    Raises:
        OSError: it cannot.

    """
    path = Path(path)
    with failing_at(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def remove_drafts(folder: str | Path) -> None:
    """Remove what killed writers left in `folder` and below; call it only while nobody writes there."""
    for draft in Path(folder).rglob(".*.tmp"):
        draft.unlink(missing_ok=True)

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


def _is_special(path: str | Path) -> bool:
    """Whether something is there that is no file, such as /dev/null: a rename would put a file in its place."""
    return os.path.exists(path) and not os.path.isfile(path)


@contextmanager
def atomic_file(path: str | Path) -> Generator[IO[bytes]]:
    """A binary file that appears at `path` when the block ends, whole and on disk, or not at all.

    A link stays one: the file that it leads to is replaced. A device or a pipe is written to as it is.

    Raises:
        OSError: it cannot be written, with `path` as its file name; any earlier file is still there.

    """
    with failing_at(path):
        if _is_special(path):
            with open(path, "wb") as file:
                yield file
            return
        # Not `tempfile`, whose files only the owner may read. Threads, too, may write to one path.
        place = Path(os.path.realpath(path))
        draft = place.with_name(f".{place.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp")
        try:
            with open(draft, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, place)
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
        if not _is_special(path):
            with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
                pass
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def home() -> Path | None:
    """The user's home folder; None for a user without one, as a container's may be."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def remove_drafts(folder: str | Path) -> None:
    """Remove what killed writers left in `folder` and below; call it only while nobody writes there."""
    for draft in Path(folder).rglob(".*.tmp"):
        draft.unlink(missing_ok=True)

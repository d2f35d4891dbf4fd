"""One process at a time: a lock that the kernel gives back when its holder ends, however it ends.

`flock`, not a file that merely exists, which a killed process would leave behind. Processes of one machine always see
each other's locks; those of several machines do on NFS (Linux sends `flock` to the server as a lock of the whole file)
and wherever the file system was mounted with cluster-wide locks.
"""

import errno
import json
import os
import platform
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from skeletal.core.errors import BusyError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_held: dict[int, tuple[Path, int]] = {}
"""by file descriptor: the lock file, and the thread of this process that holds it"""


def _let_go_in_a_child() -> None:
    # A forked data worker has a copy of the descriptor, and with it the lock, for as long as it outlives its parent.
    for file in _held:
        with suppress(OSError):
            os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_a_child)


@contextmanager
def claim(lock: Path, what: str, *, wait: bool = False) -> Generator[None]:
    """Hold `lock`, a file that is made for it and removed after, inside the `with` block.

    A thread that already holds it claims it again at no cost.

    Args:
        lock: its folder is made if need be, and then removed again unless something else has been put there.
        what: the thing that is claimed, for messages.
        wait: for the current holder to end, with a warning, instead of an error.

    Raises:
        BusyError: another process, or another thread of this one, holds it.

    Warns:
        UserWarning: the file system has no locks, so nothing keeps other processes out; or we wait.

    """
    lock = Path(os.path.abspath(lock))
    if (lock, threading.get_ident()) in list(_held.values()):
        yield
        return
    new_folder = not lock.parent.exists()
    file = _acquire(lock, what, wait)
    try:
        yield
    finally:
        if file is not None and _held.pop(file, None):  # not in a forked child
            with suppress(OSError):
                lock.unlink()  # while we hold it: a waiting process sees that it is gone, and makes a new one
            os.close(file)
        if new_folder:
            with suppress(OSError):
                lock.parent.rmdir()


def is_claimed(lock: Path) -> bool:
    """Whether a living process holds `lock`; creates nothing."""
    if fcntl is None:
        return False
    try:
        file = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except PermissionError:  # of somebody else's, who removes it when the run ends
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def _acquire(lock: Path, what: str, wait: bool) -> int | None:
    """A descriptor that holds the lock; None where there are no locks."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        try:
            if not _lock(file, lock, what, wait):
                os.close(file)
                return None
            ours = os.path.samestat(os.fstat(file), os.stat(lock))
        except FileNotFoundError:  # its last holder has removed it before we had it
            ours = False
        except BaseException:
            os.close(file)
            raise
        if ours:
            _held[file] = (lock, threading.get_ident())
            _sign(file)
            return file
        os.close(file)


def _lock(file: int, lock: Path, what: str, wait: bool) -> bool:
    """Lock an open file; False where there are no locks."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no flock on this system")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise BusyError(
                    f"{what} is busy: {_holder(lock)}; wait for it to end (--wait does), or end it:"
                    " what it has done is kept, and the same command resumes from there"
                ) from None
            warnings.warn(f"{what} is busy: {_holder(lock)}; waiting for it to end", stacklevel=5)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        with suppress(OSError):
            lock.unlink()
        warnings.warn(
            f"{lock.parent} is on a file system without locks ({error.strerror}): nothing keeps a second process"
            f" from writing to {what} at the same time",
            stacklevel=5,
        )
        return False
    return True


def _sign(file: int) -> None:
    holder = {
        "process": os.getpid(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
    }
    with suppress(OSError):  # a full disk; the lock holds without
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)


def _holder(lock: Path) -> str:
    try:
        holder = json.loads(lock.read_bytes())
        return f"process {holder['process']} on {holder['host']} has held it since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not signed yet
        return "another process holds it"

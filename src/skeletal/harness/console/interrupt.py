"""Stop at the end of a step when a signal asks for it."""

import errno
import os
import signal
import threading
from types import FrameType
from typing import Any

from skeletal.harness.store.folders import RunFolder

ENDINGS = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
"""signals that ask for the end beside Ctrl-C's: somebody's, and that of a terminal which is closed"""


def leave_closed_terminal() -> None:
    """Let what is written to a terminal that has been closed go nowhere: it would be an error in the middle of work."""
    for output in (1, 2):
        try:
            os.get_terminal_size(output)
        except OSError as error:
            if error.errno == errno.EIO:  # and not that it is no terminal
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after it had written a checkpoint to `folder` (if it has one)."""

    def __init__(self, message: str, folder: RunFolder | None) -> None:
        super().__init__(message)
        self.folder = folder


class Stop:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker, forked with our handler
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # Ctrl-C, as a closed terminal, reaches the whole group; the step under way still needs its batch
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number not in (signal.SIGINT, signal.SIGTERM):
            leave_closed_terminal()
        self.requested = True

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, *ENDINGS):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

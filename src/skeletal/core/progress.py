"""What a person sees of long work while it runs: what is being done, and how far along it is.

Code that may take long says so with `stage`, deep down; its callers decide with `shown` whether anybody sees it.
So nothing is passed down through functions that have nothing to report.
"""

import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import TextIO

FIRST = 1.0
"""seconds after which a stage is reported: a shorter one is not worth a line"""


def duration(seconds: float) -> str:
    """A time for people: 12.3 s, 3 min 20 s, 2 h 5 min, 3.1 days."""
    hours, rest = divmod(round(seconds), 3600)
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{seconds:.1f} s" if seconds < 100 else f"{rest // 60} min {rest % 60} s"


Note = str | Callable[[], str]
"""what else there is to say about a stage: a text, or a function called when it is shown"""


class Stage:
    """A piece of work under way."""

    def __init__(
        self, progress: "Progress", what: str, total: int | None, unit: str, done: int, bar: bool, named: bool = False
    ) -> None:
        self._progress, self._start, self._done_before = progress, time.monotonic(), done
        self._last = self._start  # when `done` changed
        self.what, self.total, self.unit, self.done, self.bar = what, total, unit, done, bar
        self._named = named
        self._note: Note = ""
        self.due = self._start + (FIRST if bar else 3 * FIRST)  # others may say more
        self.told = False

    def update(self, done: int | None = None, *, total: int | None = None, note: "Note | None" = None) -> None:
        """Set how much of `total` is done; `note` is what else there is to say. Values not given stay as they were."""
        if done is not None and done != self.done:
            self.done, self._last = done, time.monotonic()
        self.total = self.total if total is None else total
        self._note = self._note if note is None else note
        self._progress.changed(self)

    @property
    def note(self) -> str:
        """What else there is to say right now."""
        return self._note if isinstance(self._note, str) else self._note()

    @property
    def count(self) -> str:
        """How much is done, for a bar."""
        return "" if self.total is None else f"{self.done}/{self.total}"

    def __str__(self) -> str:
        now = time.monotonic()
        parts = []
        if self.total is not None:
            number = min(self.done + 1, self.total) if self._named else self.done
            parts.append(f"{self.unit} {number} of {self.total}".lstrip())
        parts += [note] if (note := self.note) else []
        parts.append(duration(now - self._start))
        if left := self._left(now):
            parts.append(f"about {duration(left)} left")
        return f"{self.what}: {', '.join(parts)}"

    def _left(self, now: float) -> float:
        """Seconds, by the mean time of what is finished; 0 if that is unknown or over."""
        finished = self.done - self._done_before
        if self.total is None or finished <= 0:
            return 0.0
        each = (self._last - self._start) / finished  # without what is under way, or waiting would add to it
        return max(0.0, each * (self.total - self.done) - (now - self._last))


class Progress:
    """Reports to nobody. Subclasses report the innermost stage."""

    lines = False
    """whether its lines stay, so that a reader wants one for every result"""

    @contextmanager
    def stage(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "",
        done: int = 0,
        bar: bool = True,
        named: bool = False,
    ) -> Generator[Stage]:
        """Do a piece of work inside the `with` block; see `stage`."""
        stage = Stage(self, what, total, unit, done, bar, named)
        self.begin(stage)
        try:
            yield stage
        finally:
            self.end(stage)

    def begin(self, stage: Stage) -> None:
        """A stage has begun."""

    def changed(self, stage: Stage) -> None:
        """There is news of a stage."""

    def end(self, stage: Stage) -> None:
        """A stage has ended."""

    def say(self, text: str) -> None:
        """Say something immediately."""


class Lines(Progress):
    """A plain line for the innermost stage a second after it began, then every 12 seconds, and at its end.

    A thread watches the clock, so that work that never calls back is reported, too.
    """

    lines = True
    again = 12.0
    """seconds after which a stage is reported again"""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._stages: list[Stage] = []
        self._news = threading.Condition(threading.RLock())
        self._said = 0.0

    def begin(self, stage: Stage) -> None:
        """A stage has begun."""
        with self._news:
            self._stages.append(stage)
            if len(self._stages) == 1:
                threading.Thread(target=self._watch, daemon=True).start()
            self._news.notify_all()

    def end(self, stage: Stage) -> None:
        """A stage has ended; finish its line if one was begun."""
        with self._news:
            self._stages.remove(stage)
            if self._stages:
                outer = self._stages[-1]
                outer.due = max(outer.due, self._said + self.again)
            if stage.told and stage.bar:
                self.write(stage, last=True)
            self._news.notify_all()

    def say(self, text: str) -> None:
        """Say something immediately."""
        with self._news:
            for stage in self._stages:
                stage.due, stage.told = time.monotonic() + self.again, False
            self._print(f"{text}\n")

    def _watch(self) -> None:
        with self._news:
            while self._stages:
                stage = self._stages[-1]
                wait = stage.due - time.monotonic()
                if wait > 0:
                    self._news.wait(wait)
                else:
                    self.write(stage)
                    stage.told, stage.due = True, time.monotonic() + self.again

    def write(self, stage: Stage, *, last: bool = False) -> None:
        """Report a stage, for the last time if `last`."""
        self._print(f"{stage}\n")

    def _print(self, text: str) -> None:
        stream, self._said = self._stream or sys.stderr, time.monotonic()
        with suppress(OSError, ValueError):  # the reader has gone, or the file is closed
            stream.write(text)
            stream.flush()


class OneLine(Lines):
    """One line that is overwritten, with a bar: for notebooks, and for terminals without rich."""

    lines = False
    again = 1.0
    _WIDTH = 24
    _written = 0

    def changed(self, stage: Stage) -> None:
        """There is news of a stage: shown soon, but at most four times a second."""
        with self._news:
            if stage.told:
                stage.due = min(stage.due, time.monotonic() + 0.25)
                self._news.notify_all()

    def say(self, text: str) -> None:
        """Say something immediately, on a line of its own."""
        super().say(self._over(text))

    def write(self, stage: Stage, *, last: bool = False) -> None:
        """Overwrite the current line."""
        bar = ""
        if stage.total:
            full = round(self._WIDTH * min(stage.done / stage.total, 1))
            bar = f"{'█' * full}{'·' * (self._WIDTH - full)} "
        self._print(self._over(f"{bar}{stage}") + ("\n" if last else ""))
        self._written = 0 if last else self._written

    def _over(self, text: str) -> str:
        blanks, self._written = self._written - len(text), len(text)
        return f"\r{text}{' ' * max(blanks, 0)}"


_NOBODY = Progress()
_current: ContextVar[Progress] = ContextVar("progress", default=_NOBODY)


def current() -> Progress:
    """The current reporter."""
    return _current.get()


def stage(
    what: str,
    total: int | None = None,
    *,
    unit: str = "",
    done: int = 0,
    bar: bool = True,
    named: bool = False,
) -> AbstractContextManager[Stage]:
    """Do a piece of work inside a `with` block, which gives the `Stage` to update.

    Args:
        what: the work being done, such as "reading cifar10".
        total: how many steps it has, if that is known.
        unit: what they are called, such as "step".
        done: how many of them were done earlier.
        bar: whether a terminal draws a bar for it; nothing else may be printed meanwhile.
        named: whether the note names the step under way, whose number is then told instead of how many are done.

    """
    return current().stage(what, total, unit=unit, done=done, bar=bar, named=named)


def say(text: str) -> None:
    """Say something immediately, if anybody is listening."""
    current().say(text)


def for_here() -> Progress:
    """A line that is overwritten in notebooks and on terminals, plain lines in files."""
    return OneLine() if sys.stderr.isatty() or "ipykernel" in sys.modules else Lines()


@contextmanager
def shown(on: bool, make: Callable[[], Progress] = for_here) -> Generator[Progress]:
    """Report what is done inside the `with` block, or report nothing.

    Args:
        on: whether to report. If something is already reporting, it continues.
        make: makes the reporter if there is none yet.

    """
    now = current()
    if not on:
        now = _NOBODY
    elif now is _NOBODY:
        now = make()
    before = _current.set(now)
    try:
        yield now
    finally:
        _current.reset(before)

"""Long work on a terminal: bars with the time that is left."""

from skeletal.core.extras import extra
from skeletal.core.progress import Lines, Progress, Stage, for_here

with extra("run"):
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress


class Bars(Lines):
    """A bar for every stage under way; a line for those that have none, as others print meanwhile."""

    lines = False

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bars: RichProgress | None = None
        self._tasks: dict[Stage, TaskID] = {}

    def begin(self, stage: Stage) -> None:
        """A stage has begun."""
        super().begin(stage)
        if stage.bar and stage.total is not None:
            self._draw(stage)

    def _draw(self, stage: Stage) -> None:
        if self._bars is None:
            told = "{task.fields[stage].count}  {task.fields[stage].note}"  # asked for whenever it is drawn
            columns = TextColumn("{task.description}", markup=False), BarColumn(), TextColumn(told, markup=False)
            times = TimeElapsedColumn(), TimeRemainingColumn()
            self._bars = RichProgress(
                *columns, *times, console=self._console, redirect_stdout=False, redirect_stderr=False,
                speed_estimate_period=600,
            )  # fmt: skip
            self._bars.start()
        self._tasks[stage] = self._bars.add_task(stage.what, total=stage.total, completed=stage.done, stage=stage)

    def changed(self, stage: Stage) -> None:
        """There is news of a stage."""
        if self._bars is not None and stage in self._tasks:
            self._bars.update(self._tasks[stage], completed=stage.done, total=stage.total)

    def end(self, stage: Stage) -> None:
        """A stage has ended; its bar stays if it counted steps."""
        super().end(stage)
        self._erase(stage)

    def _erase(self, stage: Stage) -> None:
        if self._bars is None or (task := self._tasks.pop(stage, None)) is None:
            return
        if stage.total is None:
            self._bars.remove_task(task)
        if not self._tasks:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        """Tell something at once, above the bars."""
        self._console.print(text, markup=False)

    def write(self, stage: Stage, *, last: bool = False) -> None:
        """A stage is taking long: draw a bar if it has none yet, or a line if it should have none."""
        if not stage.bar:
            super().write(stage, last=last)
        elif not last and stage not in self._tasks:
            self._draw(stage)


def for_person() -> Progress:
    """Bars on a terminal; else as `for_here`."""
    return Bars() if Console(stderr=True).is_terminal else for_here()

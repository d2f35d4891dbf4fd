"""What `advise` and `sanity` share: doing a list of jobs, and saying how it goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skeletal.harness.config import Setup


def work(jobs: Sequence[Any], root: Path, setup: Setup, what: str, *, executor: str, workers: int) -> None:
    """Do the jobs that are not finished, with a line on stderr that counts them.

    Raises:
        ValueError: some have failed; tells each error once.

    """
    from rich.console import Console

    from skeletal.study.dispatch.launch import launch
    from skeletal.study.paper.collect import error_of

    with Console(stderr=True).status(f"{what}: starting") as status:

        def report(counted: Any) -> None:
            status.update(f"{what}: {counted['finished']} of {len(jobs)} finished, {counted['failed']} failed")

        place = {"data_dir": setup.data_dir, "device": setup.device}
        launch(jobs, root, executor=executor, workers=workers, report=report, **place)
    errors = dict.fromkeys(error for job in jobs if (error := error_of(job.folder(root))))
    if errors:
        raise ValueError("; ".join(errors))

"""Run folders as runs leave them, without the running."""

from skeletal.harness.store.folders import RunFolder


def finish(job, root, result):
    """Leave a result where `job` would; returns its folder."""
    there = job.folder(root)
    folder = RunFolder.open(root, there.path.name.rpartition("-")[0], there.config)
    folder.finish({"model": job.setup.model, "data": job.setup.data, "seed": job.setup.seed} | result)
    return folder


def trained(accuracy):
    """A result with that test accuracy."""
    return {"test": {"top1": accuracy, "top5": 100.0}, "seconds": 30.0, "epochs": 3, "seconds_per_epoch": 9.0,
            "prune_seconds": 6.0}  # fmt: skip

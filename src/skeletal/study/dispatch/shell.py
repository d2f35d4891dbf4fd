"""A study as a list of commands, in case you have another way to run them."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from skeletal.study.paper.jobs import Job

# What `skeletal run` and `skeletal study measure` take under another name, or have from elsewhere.
_ELSEWHERE = ("data_dir", "device", "workers", "sparsity")


def command(job: Job, root: Path, data_dir: Path | None = None, device: str = "auto") -> list[str]:
    """Return the command that does one job, in the folder where the study looks for it."""
    dense = job.pruning.method == "dense"
    verb = ["run"] if job.training is not None else ["study", "measure"]
    words = ["skeletal", *verb, *_flags(asdict(job.setup)), "--device", device, "--out", str(root)]
    words += ["--method", "dense"] if dense else _flags(asdict(job.pruning))
    if job.training is not None:
        words += _flags(asdict(job.training))
    return words if data_dir is None else [*words, "--data-dir", str(data_dir)]


def _flags(settings: Mapping[str, object]) -> list[str]:
    words = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if name in _ELSEWHERE or value is None or value is False:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple | list):
            words += [word for part in value for word in (flag, str(part))]
        else:
            words += [flag, str(value)]
    return words


def lines(jobs: Sequence[Job], root: Path, data_dir: Path | None = None, device: str = "auto") -> str:
    """Return a shell line for each job."""
    return "\n".join(shlex.join(command(job, root, data_dir, device)) for job in jobs)


def array(jobs: Sequence[Job], root: Path, data_dir: Path | None = None, device: str = "auto") -> str:
    """Return a Slurm job array script: one task per job, by its line."""
    listed = lines(jobs, root.absolute(), data_dir and data_dir.absolute(), device)
    return f"""#!/bin/bash
#SBATCH --job-name=skeletal-study
#SBATCH --array=1-{len(jobs)}
#SBATCH --requeue
# Add what your cluster wants: --partition, --gpus-per-node, --time. A task that is killed goes on when it runs again.

sed -n "${{SLURM_ARRAY_TASK_ID}}p" <<'RUNS' | bash
{listed}
RUNS"""

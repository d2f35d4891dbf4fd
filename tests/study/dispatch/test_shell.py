import shlex
import subprocess
from pathlib import Path

import pytest

from skeletal.study.dispatch.shell import array, command, lines
from skeletal.study.items import ITEMS
from skeletal.study.paper.scales import SCALES

SMOKE, PAPER = SCALES["smoke"], SCALES["paper"]


@pytest.mark.parametrize("scale", [SMOKE, PAPER], ids=["smoke", "paper"])
def test_a_line_means_the_same_run(tmp_path, monkeypatch, cli, scale):
    """Read back by the command, with its settings resolved as the command does, it is the job it came from."""
    from skeletal.harness.runs import experiment, measure

    found = []

    def record(find):
        def instead(setup, pruning, *training, root, name=None, **_):
            found.append(find(setup, pruning, *training, root=root, name=name))
            raise ValueError("not run")

        return instead

    monkeypatch.setattr(experiment, "run", record(experiment.run_folder))
    monkeypatch.setattr(measure, "measure", record(measure.measure_folder))
    jobs = [*ITEMS["fig2"].jobs(scale), *ITEMS["fig4"].jobs(scale), *ITEMS["table4"].jobs(scale)]
    jobs = [job for job in jobs if job.setup.seed == 1][:: 1 if scale is SMOKE else 9]
    for job in jobs:
        said = command(job, tmp_path, Path("data"), "cpu")
        assert cli(*said[1:]).err == "error: not run\n"
        assert found[-1] == job.folder(tmp_path), said
    assert len(found) == len(jobs) > 10


def test_shell_lines_are_safe_to_paste(tmp_path):
    jobs = ITEMS["fig7"].jobs(SMOKE)[:2]
    root = tmp_path / "my studies"
    for line, job in zip(lines(jobs, root).splitlines(), jobs, strict=True):
        assert shlex.split(line) == command(job, root)


def test_a_task_of_the_array_runs_its_own_line(tmp_path):
    jobs = ITEMS["fig2"].jobs(SMOKE)
    script = tmp_path / "array.sh"
    script.write_text(array(jobs, tmp_path / "studies"))
    assert f"#SBATCH --array=1-{len(jobs)}\n" in script.read_text()
    fake = tmp_path / "bin" / "skeletal"
    fake.parent.mkdir()
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "3"}
    said = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == command(jobs[2], tmp_path / "studies")[1:]

import re
import subprocess
import sys

import pytest

from skeletal import __version__

COMMANDS = ("demo", "run", "prune", "train", "eval", "show", "diagnose", "bench", "doctor")


def test_help_and_mistakes_answer_without_torch():
    code = f"""
import sys
from skeletal.cli import main

for arguments in (
    [], ["--help"], ["--version"], ["rnu"], ["run", "--desnity", "1"], ["run", "--print-config"],
    *([command, "--help"] for command in {COMMANDS}),
):
    sys.argv = ["skeletal", *arguments]
    try:
        main()
    except SystemExit:
        pass
    heavy = {{"torch", "torchvision", "numpy", "matplotlib", "accelerate", "numba"}} & set(sys.modules)
    assert not heavy, f"{{arguments}} loads {{heavy}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_where_to_begin(cli):
    shown = cli("--help")
    assert shown.status == 0 and shown.err == ""
    for command in COMMANDS:
        assert re.search(rf"│ {command}\s+[A-Z]", shown.out), command
    assert "skeletal demo" in shown.out
    assert cli().out == shown.out
    assert cli("--version").out.strip() == __version__


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_help_shows_an_example_on_a_line_of_its_own(cli, command):
    shown = cli(command, "--help")
    assert shown.status == 0
    assert re.search(rf"^\W*skeletal {command} \S", shown.out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_that_are_everywhere(cli, command):
    shown = cli(command, "--help").out
    expected = {"--json"} | ({"--seed"} if command in ("demo", "run", "prune", "train") else set())
    if command in ("run", "prune", "train"):
        expected |= {"--config", "--print-config", "--preset"}
    for option in expected:
        assert re.search(rf"{option}\b", shown), option

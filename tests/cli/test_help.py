import re
import subprocess
import sys

import pytest

from skeletal import __version__
from skeletal.cli import app
from skeletal.cli.help import MOST_USED, SELDOM

COMMANDS = ("demo", "run", "prune", "train", "eval", "show", "compare", "export", "diagnose", "bench", "doctor")


def test_help_and_mistakes_answer_without_torch():
    code = f"""
import sys
from skeletal.cli import main

for arguments in (
    [], ["--help"], ["run", "--help-all"], ["--version"], ["rnu"], ["run", "--desnity", "1"], ["run", "--print-config"],
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


EVERY = [(name,) for name in app if not name.startswith("-") and name != "study"]
EVERY += [("study", name) for name in app["study"] if not name.startswith("-")]


def options(shown):
    return set(re.findall(r"--[a-z][\w-]*", shown)) - {"--help-all"}


@pytest.mark.parametrize("command", [(), ("study",), *EVERY], ids=" ".join)
def test_help_fits_on_a_screen_and_all_of_it_is_there_for_the_asking(cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    short, full = cli(*command, "--help"), cli(*command, "--help-all")
    assert short.status == full.status == 0
    assert len(short.out.splitlines()) <= 50, "one screen"
    assert "--help-all" in short.out
    assert options(short.out) <= options(full.out)
    assert not re.search(r"--(no-(?!memory)|empty-)", short.out)
    if command:
        found = app[command[0]] if len(command) == 1 else app["study"][command[1]]
        if found.default_command:
            wanted = {name for argument in found.assemble_argument_collection() for name in argument.names}
            wanted = {name for name in wanted if name.startswith("--") and not name.startswith(("--no-", "--empty-"))}
            assert {name for name in wanted if "." not in name} <= options(full.out)


def test_what_a_short_help_shows_or_leaves_out_exists(cli):
    assert set(MOST_USED) | SELDOM <= set().union(*(options(cli(*command, "--help-all").out) for command in EVERY))


def test_an_option_cannot_be_emptied(cli):
    assert cli("advise", "--empty-methods").status != 0


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_help_has_room_for_names(cli, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = cli("run", "--help")
    assert shown.status == 0 and re.search(r"--density\s", shown.out) and "--seeds" in shown.out

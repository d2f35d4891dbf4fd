"""What the README promises is run as it stands there."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from skeletal.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_api_examples_run_one_after_the_other(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where what was measured is remembered
    names: dict = {}
    for example in blocks("python"):
        exec(compile(example, "README.md", "exec"), names)
    names["mask"].check(names["model"])
    assert names["mask"].kept == round(0.02 * names["mask"].total)
    shown = capsys.readouterr().out
    assert "layer1.0.conv1.weight" in shown and "way: " in shown


def test_ci_calls_exactly_the_readmes_test_command():
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("command", [line for b in blocks("bash") for line in b.splitlines() if "pytest" not in line])
def test_every_other_command_is_understood(command):
    arguments = shlex.split(command.rpartition("skeletal ")[2])
    app.parse_args(arguments, exit_on_error=False, print_error=False)


def test_the_table_of_methods_is_that_of_the_code():
    import skeletal

    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*?\| (\d+) \|", README, re.MULTILINE))
    assert rows == {name: str(method.steps) for name, method in skeletal.METHODS.items()}


def test_every_network_data_set_and_preset_is_named():
    from skeletal.harness import config, data, models

    for name in [*models.NAMES, *data.NAMES, *config.PRESETS]:
        assert f"`{name}`" in README, name


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_package_says_what_the_readme_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "MIT"
    assert (ROOT / "LICENSE").exists()

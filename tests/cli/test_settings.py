import json
import tomllib
from pathlib import Path

import pytest

from skeletal.cli.settings import resolved
from skeletal.harness.config import PRESETS, Setup


def printed(cli, *arguments):
    shown = cli(*arguments, "--print-config")
    assert shown.status == 0, shown.err
    return shown.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--preset", "cifar10", "--method", "snip", "--seed", "3"],
        ["run", "--density", "0.0123", "--lr", "1e-7", "--milestones", "0.2", "--milestones", "0.9", "--bf16"],
        ["run", "--empty-milestones"],
        ["run", "--data-dir", 'C:\\my "data" ü'],
        ["run", "--data-dir", "data/\U0001f600"],
        ["run", "--sparsity", "0.98"],
        ["prune", "--schedule", "linear", "--steps", "7"],
        ["train", "--channels-last", "--test-every", "2"],
    ],
    ids=" ".join,
)
def test_printed_settings_read_back_print_the_same(cli, arguments):
    first = printed(cli, *arguments)
    Path("my.toml").write_text(first, encoding="utf-8")
    command = arguments[0]
    assert printed(cli, command, "--config", "my.toml") == first
    assert printed(cli, command, *arguments[1:], "--config", "my.toml") == first
    assert printed(cli, command, *arguments[1:]) == first  # and the file is not remembered


def test_printed_settings_are_complete_and_run_nothing(cli, tmp_path):
    said = printed(cli, "run", "--preset", "cifar100")
    assert not tomllib.loads(said).keys() & PRESETS["cifar100"].keys()  # the preset's stand there as comments
    settings = tomllib.loads(said.replace("\n# ", "\n"))
    assert settings["preset"] == "cifar100" and settings["model"] == "vgg-mini" and settings["method"] == "force"
    for key, value in PRESETS["cifar100"].items():
        assert settings[key] == (list(value) if isinstance(value, tuple) else value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_wins_over_the_file(cli):
    Path("my.toml").write_text("density = 0.3\nseed = 5\n")
    settings = tomllib.loads(printed(cli, "run", "--config", "my.toml", "--seed", "6"))
    assert (settings["density"], settings["seed"]) == (0.3, 6)
    assert tomllib.loads(printed(cli, "--config", "my.toml", "run"))["seed"] == 5
    Path("my.toml").write_text("seed = 5\n", encoding="utf-8-sig")  # as some editors on Windows write it
    assert tomllib.loads(printed(cli, "run", "--config", "my.toml"))["seed"] == 5


def test_sparsity_on_the_command_line_wins_over_density_in_the_file(cli):
    Path("my.toml").write_text("density = 0.3\n")
    settings = tomllib.loads(printed(cli, "run", "--config", "my.toml", "--sparsity", "0.75"))
    assert settings["sparsity"] == 0.75 and "density" not in settings


def test_one_file_serves_run_prune_and_train_and_another_preset(cli):
    Path("my.toml").write_text(printed(cli, "run", "--lr", "0.5", "--density", "0.3"))
    assert tomllib.loads(printed(cli, "prune", "--config", "my.toml"))["density"] == 0.3
    assert tomllib.loads(printed(cli, "train", "--config", "my.toml"))["lr"] == 0.5
    assert "# epochs = 350" in printed(cli, "run", "--config", "my.toml", "--preset", "cifar10")


@pytest.mark.parametrize("command", [["study", "measure"], ["advise", "--densities", 0.3, "--methods", "random"]])
def test_the_file_of_a_run_serves_commands_that_do_not_train(cli, command):
    small = ("--method", "random", "--decay", "one-cycle", "--seed", 3, "--device", "cpu", "--lr", 0.5)
    Path("my.toml").write_text(printed(cli, "run", *small))
    shown = cli(*command, "--config", "my.toml", "--json")
    assert shown.status == 0, shown.err
    assert 3 in {json.loads(made.read_text())["seed"] for made in Path().rglob("config.json")}


def test_an_unknown_key_in_the_file(cli):
    Path("my.toml").write_text("densty = 0.1\n")
    shown = cli("run", "--config", "my.toml")
    assert shown.status > 0 and shown.out == ""
    for part in ("densty", "my.toml", "density"):
        assert part in shown.err


@pytest.mark.parametrize("content", ["density = ", 'density = "much"'])
def test_a_file_that_cannot_be_read_is_named(cli, content):
    Path("my.toml").write_text(content)
    shown = cli("run", "--config", "my.toml")
    assert shown.status > 0 and "my.toml" in shown.err


def test_sparsity_is_another_word_for_the_same_settings(cli):
    settings = ["run", "--method", "random", "--epochs", "1", "--batch-size", "512", "--engine", "dense", "--json"]
    first = cli(*settings, "--density", "0.02").json
    second = cli(*settings, "--sparsity", "0.98").json
    assert first["folder"] == second["folder"]
    assert len(list(Path("runs").iterdir())) == 1


@pytest.mark.parametrize("written", ["FORCE-Regrow", "force_regrow", "Force_ReGrow"])
def test_a_method_is_known_however_it_is_written(cli, written):
    shown = cli("prune", "--method", written, "--steps", "2", "--json")
    assert shown.json["method"] == "force-regrow"


def test_a_step_is_the_default_of_a_one_shot_method_however_it_is_written(cli):
    assert cli("prune", "--method", "SNIP", "--json").json["steps"] == 1
    assert cli("prune", "--method", "FORSE", "--out", "another.safetensors").err.count("Did you mean 'force'?") == 1


def test_a_file_that_was_not_there_is_forgotten(cli):
    first = printed(cli, "run")
    assert cli("run", "--config", "my.toml").status > 0
    assert printed(cli, "run") == first


def test_a_network_of_another_library_has_one_name():
    (setup,) = resolved("quick", Setup(model="ResNet18"))
    assert setup.model == "resnet18"

"""No option takes a value for another: each is given, in turn, what it has no use for."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from skeletal.cli import app
from skeletal.cli.study import study
from skeletal.harness.config import Pruning, Setup, Training

COMMANDS = {(name,): app[name] for name in app if name != "study" and not name.startswith("-")}
COMMANDS |= {("study", name): study[name] for name in study if not name.startswith("-")}
RECORDS = {"run": (Setup, Pruning, Training), "prune": (Setup, Pruning), "train": (Setup, Training)}


def kinds(hint) -> set:
    return set(get_args(hint) or (hint,)) - {type(None)}


OPTIONS = [
    (*command, argument.name, kinds(argument.hint))
    for command, its in COMMANDS.items()
    for argument in its.assemble_argument_collection()
    if argument.name.startswith("--") and argument.parse
]
WHOLE = [words for *words, found in OPTIONS if found == {int}]
NUMBERS = [words for *words, found in OPTIONS if found in ({int}, {float})]


def test_every_option_is_looked_at():
    assert {"run", "bench", "study", "advise"} <= {words[0] for words in WHOLE}
    assert {"--seed", "--epochs", "--repeat", "--jobs", "--workers", "--measure-batches"} <= {w[-1] for w in WHOLE}
    said = {(command, "--" + field.name.replace("_", "-")) for command, records in RECORDS.items()
            for record in records for field in fields(record)}  # fmt: skip
    assert said <= {(words[0], words[-1]) for *words, _ in OPTIONS}


def refused(shown):
    assert shown.status in (1, 2) and shown.out == "" and "Traceback" not in shown.err
    return shown.err


@pytest.mark.parametrize("words", WHOLE, ids=" ".join)
def test_a_fraction_is_no_whole_number(cli, tmp_path, words):
    assert f"{words[-1]} takes a whole number, not 1.5" in refused(cli(*words, "1.5"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", NUMBERS, ids=" ".join)
def test_a_word_is_no_number(cli, words):
    *command, option = words
    needed = ["x" for argument in COMMANDS[tuple(command)].assemble_argument_collection() if argument.required]
    assert option in refused(cli(*command, *needed, option, "several"))


@pytest.mark.parametrize("words", [words for words in NUMBERS if words[0] in RECORDS], ids=" ".join)
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_a_setting_has_a_range(cli, tmp_path, words, value):
    err = refused(cli(*words, value))
    assert words[-1].strip("-").replace("-", "_") in err.replace("-", "_")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", RECORDS)
def test_the_file_is_as_strict_as_the_command_line(cli, tmp_path, command):
    for record in RECORDS[command]:
        for field in fields(record):
            if kinds(field.type) == {int}:
                (tmp_path / "my.toml").write_text(f"{field.name} = 1.5\n")
                err = refused(cli(command, "--config", "my.toml", "--print-config"))
                assert f"my.toml: {field.name} takes a whole number, not 1.5" in err


@pytest.mark.parametrize("command", RECORDS)
def test_a_table_in_the_file_is_not_passed_over(cli, command):
    Path("my.toml").write_text(f"[{command}]\nseed = 3\n")
    err = refused(cli(command, "--config", "my.toml", "--print-config"))
    assert f"my.toml has a table [{command}]" in err and "at the top of the file" in err


@pytest.mark.parametrize("value", ["100", "1.01", "-0.1", "nan"])
def test_milestones_are_fractions(cli, value):
    assert "fractions of the training, from 0 to 1" in refused(cli("run", "--milestones", "0.5", "--milestones", value))


def test_several_milestones_follow_one_word(cli):
    found = [cli("run", *words, "--print-config") for words in (
        ("--milestones", "0.5", "0.75"), ("--milestones", "0.5", "--milestones", "0.75"))]  # fmt: skip
    assert found[0].out == found[1].out and "\nmilestones = [0.5, 0.75]\n" in found[0].out


@pytest.mark.parametrize("field", [field for field in fields(Pruning) if field.name != "method"], ids=lambda f: f.name)
def test_what_says_how_to_prune_is_refused_where_nothing_is_pruned(cli, field):
    option = "--" + field.name.replace("_", "-")
    values = {"density": "0.1", "sparsity": "0.9", "schedule": "linear", "precision": "bfloat16", "as_in": "pysnip",
              "scoring_engine": "sparse", "on_collapse": "raise", "sampling": "balanced", "loss": "nll",
              "average": "absolute", "bn_mode": "eval"}  # fmt: skip
    value = [] if field.type is bool else [values.get(field.name, "3")]
    err = refused(cli("run", "--method", "dense", option, *value, "--print-config"))
    assert f"leave {option} out" in err

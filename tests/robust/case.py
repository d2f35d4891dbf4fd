"""A case of bad input: a function that hands it over, and the message a user gets for it."""

import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from unittest import mock

Cause = Callable[[], object]
CASES: dict[str, dict[str, Cause]] = {}
"""group -> what is wrong -> how to do it, in an empty current folder"""


def case(group: str, wrong: str) -> Callable[[Cause], Cause]:
    def add(cause: Cause) -> Cause:
        assert wrong not in CASES.setdefault(group, {}), wrong
        CASES[group][wrong] = cause
        return cause

    return add


def command(*arguments: object) -> str:
    """What `skeletal` tells a user on stderr; it has to end with an error."""
    from skeletal.cli import main

    told = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["skeletal", *map(str, arguments)]),
        mock.patch.dict(os.environ, {"COLUMNS": "1000"}),
        mock.patch("skeletal.core.progress.FIRST", 1e6),  # a busy machine's delays are no part of what is said
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(told),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            main()
        except SystemExit as stopped:
            assert stopped.code
            return re.sub(r"[│╭╮╰╯─]", " ", told.getvalue())
    raise AssertionError(f"no error: {arguments}")


def message(cause: Cause) -> str:
    """What comes of it, in an empty folder: the error with its kind, or what the command prints; on one line."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            told = cause()
        except (AssertionError, AttributeError, LookupError):
            raise  # nobody is told such a thing on purpose
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        assert isinstance(told, str), "no error"
        told = told.replace(os.path.realpath(folder) + os.sep, "").replace(folder + os.sep, "")
    for changing, shown in VARYING:
        told = re.sub(changing, shown, told)
    return " ".join(told.split())


# What differs from machine to machine, and what other libraries say in their own words.
VARYING = [
    (r"process \d+ on \S+", "process … on …"),
    (r"since 20\d\d-[-0-9:+. ]+", "since …"),
    (r"-[0-9a-f]{8}\b", "-…"),
    (r"\((Error while deser|Weights only load|Error\(s\) in loading|Trying to resize|\[enforce fail).*?\);", "(…);"),
    (r"archive/data/\d+", "archive/data/…"),
    (r"maximum recursion depth exceeded[^;)]*", "maximum recursion depth exceeded …"),
    (r"usable here \(.*\)", "usable here (…)"),
]

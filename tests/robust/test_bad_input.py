"""docs/bad-input.md says, row by row, what users are told; here is that they are."""

import re
from pathlib import Path

import pytest

from tests.robust.bad_input import CASES, GROUPS, cell, message

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"


def documented() -> dict[str, dict[str, str]]:
    """group -> what is wrong -> the message, from the page's tables."""
    tables: dict[str, dict[str, str]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            rows = tables.setdefault(line.removeprefix("## "), {})
        elif row := re.fullmatch(r"\| (.*?) \| (`.*`) \|", line):
            rows[row[1]] = row[2]
    return {group: rows for group, rows in tables.items() if rows}


def test_the_page_has_a_row_for_every_case_in_their_order():
    assert [(group, list(rows)) for group, rows in documented().items()] == [
        (group, list(CASES[group])) for group in GROUPS
    ]
    assert set(GROUPS) == set(CASES)


@pytest.mark.parametrize(("group", "wrong"), [(group, wrong) for group in GROUPS for wrong in CASES[group]])
def test_the_message_is_the_one_on_the_page(group, wrong):
    told = message(CASES[group][wrong])
    assert cell(told) == documented()[group][wrong]
    assert "Traceback" not in told and "[Errno" not in told

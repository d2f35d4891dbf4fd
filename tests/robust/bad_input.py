"""Every kind of bad input we know, and what a user is told.

    python -m tests.robust.bad_input

prints the tables of docs/bad-input.md, with which a test compares them.
"""

from tests.robust import bad_calls, bad_masks, bad_runs
from tests.robust.case import CASES, message

__all__ = ["CASES", "GROUPS", "cell", "message", "tables"]
GROUPS = (
    bad_masks.MASKS,
    bad_runs.CHECKPOINTS,
    bad_runs.RUNS,
    bad_calls.NUMBERS,
    bad_calls.SETTINGS,
    bad_calls.COMMANDS,
)
"""in the page's order"""


def tables() -> str:
    """The tables of the page."""
    lines = []
    for group in GROUPS:
        lines += [f"## {group}", "", "| what is wrong | what you are told |", "|---|---|"]
        lines += [f"| {wrong} | {cell(message(cause))} |" for wrong, cause in CASES[group].items()]
        lines.append("")
    return "\n".join(lines)


def cell(told: str) -> str:
    """A message as it stands in the table."""
    return f"`{told.replace('|', chr(92) + '|').replace('`', chr(39))}`"


if __name__ == "__main__":
    print(tables())

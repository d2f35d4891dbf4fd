"""The code of a page of documentation, and the output printed under it."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_RUN = "<!-- not run"


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    shown: str | None
    """the text block right after it"""
    run: bool


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page; one under a comment `<!-- not run: why -->` is for reading only."""
    text = page.read_text()
    found = list(re.finditer(r"^```([\w-]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    result = []
    for block, after in zip(found, [*found[1:], None][: len(found)], strict=True):
        follows = after and after[1] == "text" and not text[block.end() : after.start()].strip()
        before = text[: block.start()].rstrip().rsplit("\n", 1)[-1]
        result.append(
            Block(
                block[1],
                block[2],
                text.count("\n", 0, block.start()) + 2,
                after[2] if after and follows else None,
                NOT_RUN not in before,
            )
        )
    return result


_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?")
_CHANGES = [(r"\b\d+\.\d+ s\b", "SECONDS"), (r"-[0-9a-f]{8}\b", "-HASH")]


def same_output(found: str, shown: str, tolerance: float = 0.3) -> bool:
    """Whether two outputs agree: words exactly, numbers up to what another processor's rounding makes of a mask.

    Times and hashes may be any. Numbers may differ by `tolerance` of the larger one.
    """
    for pattern, name in _CHANGES:
        found, shown = re.sub(pattern, name, found), re.sub(pattern, name, shown)
    words = [" ".join(_NUMBER.sub("#", text).split()) for text in (found, shown)]
    numbers = [[float(n.replace(",", "")) for n in _NUMBER.findall(text)] for text in (found, shown)]
    return words[0] == words[1] and all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(*numbers, strict=True))

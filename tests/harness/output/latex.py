"""A strict reader of one `tabular`: what LaTeX would not compile, or would compile to something else, fails here."""

import re

SIGNS = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"$\pm$": "±"}
SIGNS |= {f"\\{sign}": sign for sign in "%&_#${}"}
TOKEN = re.compile("|".join(map(re.escape, sorted(SIGNS, key=len, reverse=True))) + r"|[^\\%&_#${}~^]")


def read_tabular(text: str) -> tuple[str, list[list[str]]]:
    """The columns' alignment, and the cells of every row as plain text; the first row stands above the midrule."""
    lines = [line for line in text.split("\n") if not line.startswith("%")]
    begin = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", lines[0])
    assert begin and lines[-1] == r"\end{tabular}", "one tabular, begun and ended"
    assert lines[1] == r"\toprule" and lines[3] == r"\midrule" and lines[-2] == r"\bottomrule"
    rows = [_row(line) for line in (lines[2], *lines[4:-2])]
    assert all(len(row) == len(begin[1]) for row in rows), "a cell a column"
    return begin[1], rows


def _row(line: str) -> list[str]:
    assert line.endswith(r" \\"), f"a row ends in two backslashes: {line}"
    return [_plain(cell).strip() for cell in re.split(r"(?<!\\) ?& ?", line.removesuffix(r" \\"))]


def _plain(cell: str) -> str:
    plain, at = "", 0
    while at < len(cell):
        token = TOKEN.match(cell, at)
        assert token, f"not escaped: {cell[at:]!r} in {cell!r}"
        plain, at = plain + SIGNS.get(token[0], token[0]), token.end()
    return plain

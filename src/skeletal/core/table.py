"""One table, written as text, Markdown, CSV or LaTeX."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

Row = Sequence[object]

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{sign: f"\\{sign}" for sign in "%&_#${}"},
}


@dataclass(frozen=True)
class Table:
    """Columns' names and rows of as many cells; a cell is written as `str` writes it."""

    columns: Row
    rows: Sequence[Row]
    title: str = ""
    left: int = 1
    """how many columns, from the first, are aligned to the left; the others to the right"""

    def text(self) -> str:
        """For a terminal: columns aligned, two spaces between them."""
        return "\n".join("  ".join(cells).rstrip() for cells in self._padded())

    def markdown(self, *, padded: bool = True) -> str:
        """Markdown, by default aligned in the source, too."""
        head, *rows = self._padded() if padded else (self.columns, *self.rows)
        return "\n".join([markdown_head(head, self.left), *map(markdown_row, rows)])

    def shown(self, *, markdown: bool) -> str:
        """As `markdown`, or else as `text`."""
        return self.markdown() if markdown else self.text()

    def csv(self) -> str:
        """Comma-separated values, the names first; cells are quoted where they have to be."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue().rstrip("\n")

    def latex(self) -> str:
        """A `tabular` with the rules of booktabs; the title is a comment above it."""

        def line(cells: Row) -> str:
            return " & ".join(latex_escaped(str(cell)) for cell in cells) + r" \\"

        return "\n".join([
            *([f"% {self.title}"] if self.title else []),
            rf"\begin{{tabular}}{{{'l' * self.left}{'r' * (len(self.columns) - self.left)}}}",
            r"\toprule",
            line(self.columns),
            r"\midrule",
            *map(line, self.rows),
            r"\bottomrule",
            r"\end{tabular}",
        ])  # fmt: skip

    def _padded(self) -> list[list[str]]:
        rows = [[str(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            [
                cell.ljust(w) if i < self.left else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            for row in rows
        ]


def markdown_head(columns: Row, left: int = 1) -> str:
    """The first two lines of a Markdown table, for tables whose rows are printed as they come."""
    return f"{markdown_row(columns)}\n|{'|'.join(['---'] * left + ['---:'] * (len(columns) - left))}|"


def markdown_row(cells: Row) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def latex_escaped(text: str) -> str:
    """Plain text for LaTeX: what has a meaning there is escaped."""
    return "".join(_LATEX.get(sign, sign) for sign in text)

"""One table, written as text, Markdown, HTML, CSV or LaTeX."""

import csv
import html
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
    """Column names, and rows with as many cells; a cell is written as `str` writes it."""

    columns: Row
    rows: Sequence[Row]
    title: str = ""
    left: int = 1
    """how many columns, from the first, are left-aligned; the others are right-aligned"""
    lead: Sequence[str] = ()
    """what matters most: lines above the table, in text and HTML"""
    notes: Sequence[str] = ()
    """lines below it, in text, Markdown and HTML: what the columns mean, totals"""

    def text(self) -> str:
        """For a terminal: columns aligned, two spaces between them."""
        rows = "\n".join("  ".join(cells).rstrip() for cells in self._padded())
        return "\n\n".join(["\n".join(part) for part in (self.lead, [rows], self.notes) if part])

    def html(self) -> str:
        """For a notebook: plain HTML, which takes the notebook's own style."""
        head, *rows = [self._html_row(self.columns, "th"), *(self._html_row(row, "td") for row in self.rows)]
        return "\n".join([
            *(f"<div>{html.escape(line)}</div>" for line in self.lead),
            f"<table>\n<thead>{head}</thead>\n<tbody>",
            *rows,
            "</tbody>\n</table>",
            *(["<pre>" + html.escape("\n".join(self.notes)) + "</pre>"] if self.notes else []),
        ])  # fmt: skip

    def markdown(self, *, padded: bool = True) -> str:
        """Markdown, by default also aligned in the source; each note is a paragraph below it."""
        head, *rows = self._padded() if padded else (self.columns, *self.rows)
        table = "\n".join([markdown_head(head, self.left), *map(markdown_row, rows)])
        return "\n\n".join([table, *self.notes])

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

    def _html_row(self, row: Row, tag: str) -> str:
        sides = ("left" if i < self.left else "right" for i in range(len(self.columns)))
        cells = (
            f'<{tag} style="text-align: {side}">{html.escape(str(cell))}</{tag}>'
            for cell, side in zip(row, sides, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

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


class Tabular:
    """Printed as a table in a terminal, shown as one in a notebook."""

    def _table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()


def markdown_head(columns: Row, left: int = 1) -> str:
    """The first two lines of a Markdown table, for tables whose rows are printed as they come."""
    return f"{markdown_row(columns)}\n|{'|'.join(['---'] * left + ['---:'] * (len(columns) - left))}|"


def markdown_row(cells: Row) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def latex_escaped(text: str) -> str:
    """Plain text for LaTeX, with its special characters escaped."""
    return "".join(_LATEX.get(sign, sign) for sign in text)

"""Tables are read back by readers of their formats, and hold what was put in."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skeletal.core.table import Table, markdown_head, markdown_row
from tests.harness.output.latex import read_tabular

TABLE = Table(("layer", "weights", "a, b"), [("stem", "1,234", 'say "so"'), ("a very long name", 12, 0.5)], "A title")


def test_text_is_aligned():
    assert TABLE.text().splitlines() == [
        "layer             weights      a, b",
        'stem                1,234  say "so"',
        "a very long name       12       0.5",
    ]


def test_as_many_columns_as_asked_for_stand_to_the_left():
    assert Table(("a", "b", "c"), [("x", "long", "y")], left=2).text() == "a  b     c\nx  long  y"
    assert Table(("a", "b"), [("x", "y")], left=2).markdown().splitlines()[1] == "|---|---|"


def test_markdown_is_aligned_and_can_be_printed_row_by_row():
    lines = TABLE.markdown().splitlines()
    assert lines[1] == "|---|---:|---:|"
    assert len({len(line) for line in (lines[0], *lines[2:])}) == 1
    by_rows = [*markdown_head(TABLE.columns).splitlines(), *map(markdown_row, TABLE.rows)]
    assert [re.sub(" +", " ", line) for line in lines] == by_rows == TABLE.markdown(padded=False).splitlines()


def test_csv_is_read_back():
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows == [[str(cell) for cell in row] for row in (TABLE.columns, *TABLE.rows)]


CELLS = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")) | st.sampled_from("±é"), max_size=12
)


@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=4))
def test_latex_is_read_back_whatever_the_cells_say(rows):
    head, *body = rows
    columns, found = read_tabular(Table(head, body, "100% of it").latex())
    assert columns == "lrr"
    assert found == [[cell.strip() for cell in row] for row in rows]


@pytest.mark.parametrize("row", [("a", "b", "c"), ("a",)])
def test_a_row_of_another_length_is_no_row(row):
    with pytest.raises(ValueError, match="zip"):
        Table(("x", "y"), [row]).text()

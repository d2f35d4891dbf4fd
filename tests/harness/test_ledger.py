"""Costs add up, and a record is read as it was written."""

import json
from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from skeletal.harness.ledger import COUNTS, Cost, Ledger

counts = st.integers(min_value=0, max_value=10**18)
costs = st.builds(Cost, *[counts] * len(COUNTS), st.floats(0, 1e6), counts)
parts = st.none() | costs


@given(costs, costs, costs)
def test_costs_add_up_in_any_order(a, b, c):
    assert a + b == b + a and a + Cost() == a == a.beside(Cost())
    one, other = (a + b) + c, a + (b + c)
    assert replace(one, seconds=0.0) == replace(other, seconds=0.0)
    assert one.macs_kept == sum(x.forward_kept + x.backward_kept for x in (a, b, c))
    assert one.macs_dense == sum(x.forward_dense + x.backward_dense for x in (a, b, c))
    assert one.peak_memory == max(x.peak_memory for x in (a, b, c))
    assert replace(a + b, seconds=0.0) == replace(a.beside(b), seconds=0.0)
    assert (a + b).seconds == a.seconds + b.seconds and a.beside(b).seconds == max(a.seconds, b.seconds)


@given(costs, st.integers(0, 20))
def test_a_number_of_equal_pieces_is_their_sum(cost, number):
    assert cost.times(number) == sum([replace(cost, seconds=0.0, peak_memory=0)] * number, Cost())


@given(parts, parts, parts)
def test_a_record_is_read_as_it_was_written(finding, training, evaluation):
    ledger = Ledger(finding, training, evaluation)
    again = Ledger.read(json.loads(json.dumps(ledger.record())))
    for field in fields(Ledger):
        wanted, found = getattr(ledger, field.name), getattr(again, field.name)
        assert found == (wanted if wanted is None else replace(wanted, seconds=round(wanted.seconds, 3)))
    assert ledger.total == (None if finding is None or training is None else finding + training)


def test_records_of_earlier_versions_are_blank():
    assert Ledger.read(None) == Ledger.read({}) == Ledger() and Ledger().total is None
    assert Cost.read({"examples": 3, "of a later version": 1}) == Cost(examples=3)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skeletal.core.choices import at_least, at_most, require, spelled

NAMES = ("force", "force-regrow", "GRASP-It", "vgg19_bn")


@pytest.mark.parametrize(
    ("written", "name"),
    [("FORCE", "force"), ("Force_Regrow", "force-regrow"), ("grasp-it", "GRASP-It"), ("VGG19-BN", "vgg19_bn")],
)
def test_a_name_is_known_in_any_case_and_with_either_dash(written, name):
    assert spelled(written, NAMES) == name


def test_what_is_no_choice_stays_as_it_was_written():
    assert spelled("Forced", NAMES) == "Forced" and spelled("", NAMES) == ""


@pytest.mark.parametrize(
    ("written", "meant"), [("FORSE", "force"), ("grasp_itt", "GRASP-It"), ("vgg19-bm", "vgg19_bn")]
)
def test_the_nearest_name_is_found_whatever_the_case(written, meant):
    with pytest.raises(ValueError, match=f"unknown method '{written}'. Did you mean '{meant}'?"):
        require("method", written, NAMES)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_bounds_in_digits_are_still_bounds(one, other):
    part, total = sorted((one, other))
    assert 0 < float(at_most(part / total)) <= part / total <= float(at_least(part / total))
    assert float(at_least(part / total)) / float(at_most(part / total)) < 1 + 3e-5
    assert round(float(at_least(1 / total)) * total) == 1


def test_bounds_are_as_short_as_they_can_be():
    assert (at_most(0.09), at_least(0.2), at_most(1.0), at_most(2 / 3), at_least(1e-7)) == (
        "0.09", "0.2", "1.0", "0.666666", "0.0000001")  # fmt: skip

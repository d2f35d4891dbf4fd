import pytest

from skeletal.core.choices import require, spelled

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

import pytest

from skeletal.study.items import ITEMS
from skeletal.study.paper.scales import SCALES
from skeletal.study.paper.select import select

SMOKE = SCALES["smoke"]


def test_panels_and_methods_are_known_however_they_are_written():
    item = ITEMS["fig2"]
    exact = select([item], SMOKE, panels=["b"], methods=["FORCE"])
    assert exact and exact == select([item], SMOKE, panels=["B"], methods=["force"])
    assert len(exact) < len(select([item], SMOKE))


def test_a_method_that_a_scale_leaves_out_is_found_at_another():
    with pytest.raises(ValueError, match=r"^grasp_it is left out of fig9 at scale smoke: choose --scale .*cpu"):
        select([ITEMS["fig9"]], SMOKE, methods=["grasp_it"])
    assert select([ITEMS["fig9"]], SCALES["cpu"], methods=["grasp_it"])


def test_a_method_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"unknown method 'forse'. Did you mean 'FORCE'"):
        select([ITEMS["fig2"]], SMOKE, methods=["forse"])

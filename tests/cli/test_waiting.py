"""What a person reads who waits for a command."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from skeletal.cli.commands import _loading
from skeletal.core.progress import Progress, shown


class Begun(Progress):
    """The stages that have begun."""

    def __init__(self):
        self.stages = []

    def begin(self, stage):
        self.stages.append(stage.what)


@pytest.fixture
def begun():
    with shown(True, Begun) as progress:
        yield progress.stages


def test_the_library_that_is_being_imported_is_named(monkeypatch):
    assert _loading() == ""
    library = ModuleType("timm")
    library.__spec__ = SimpleNamespace(_initializing=True)
    monkeypatch.setitem(sys.modules, "timm", library)
    assert _loading() == "loading timm"


def test_what_takes_seconds_has_a_name(cli, begun):
    assert cli("prune", "--method", "random", "--model", "lenet5", "--data", "digits").status == 1  # 8x8 is too small
    assert cli("prune", "--method", "random").status == 0
    assert begun[-4:] == ["skeletal prune", "reading digits", "building vgg-mini", "pruning, random"]
    assert cli("prune", "--model", "vgg-mni").status == 1
    assert begun[-1] == "looking up the network's name"

"""What masks, diagnoses, reports and skeletons look like in a terminal, in a notebook, as data and as a picture."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

import skeletal
from skeletal.compaction.report import Report
from skeletal.engine.report import EngineReport, LayerTimes
from tests.cases import random_mask

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402


@pytest.fixture(scope="module")
def shown():
    model = skeletal.models.create("lenet5", num_classes=10, in_channels=1, image_size=28)
    example = torch.zeros(2, 1, 28, 28)
    mask = skeletal.Mask(random_mask(model, 0.05), {"method": "<random>"})
    layers = tuple(
        LayerTimes(name, tuple(keep.shape), int(keep.sum()), "sparse", 1.0 + x, 3.0)
        for x, (name, keep) in enumerate(mask.items())
    )
    steps = {"sparse": 2.0, "dense": 8.0, "dense, channels last": 5.0}
    return {
        "mask": mask,
        "diagnosis": skeletal.diagnose(model, mask, example),
        "compact": skeletal.compact(model, mask, example).report,
        "engine": EngineReport(layers, steps, "sparse", "what went", ("a note", "another"), "3 channels"),
    }


KINDS = ("mask", "diagnosis", "compact", "engine")


class Cells(HTMLParser):
    """The cells of an HTML table, row by row; whether tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_shows_the_rows_that_a_terminal_shows(shown, kind):
    found = shown[kind]
    in_text = [re.split(r" {2,}", line.strip()) for line in str(found).splitlines()]
    rows = Cells(found._repr_html_()).rows
    assert len(rows) > 4 and all(row in in_text for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_one_line_and_as_data(shown, kind):
    assert "\n" not in repr(shown[kind]) and len(repr(shown[kind])) < 300
    data = shown[kind].to_dict()
    assert json.loads(json.dumps(data))["layers"][0]["name"].removesuffix(".weight") == "conv1"


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_has_a_bar_for_each_layer_and_number(shown, kind):
    found = shown[kind]
    mine = found.plot()
    given = pyplot.subplots()[1]
    assert found.plot(given) is given
    names = [text.get_text() for text in mine.get_xticklabels()]
    layers = [layer["name"].removesuffix(".weight") for layer in found.to_dict()["layers"]]
    assert names == layers
    assert len(mine.patches) % len(layers) == 0
    if kind == "mask":
        assert [bar.get_height() for bar in mine.patches] == [float(keep.double().mean()) for keep in found.values()]
    if kind == "diagnosis":
        tops = [bar.get_y() + bar.get_height() for bar in mine.patches[-len(layers) :]]
        assert tops == pytest.approx([1.0] * len(layers)), "all kept weights are something"
    if kind == "compact":
        assert [bar.get_height() for bar in mine.patches] == [
            layer.outputs[when] for when in (0, 1) for layer in found.layers
        ]
    pyplot.close("all")


def test_a_report_begins_with_what_matters(shown):
    lines = str(shown["engine"]).splitlines()
    assert lines[0] == "way: sparse, 2.0 ms a training step; dense, channels last: 5.0 ms, 2.5x as long"
    assert lines[1] == "layers: 5 sparse, 0 dense"
    assert lines[3:6] == ["channels: 3 channels", "a note", ""]
    assert str(shown["compact"]).splitlines()[0] == shown["compact"].summary
    chosen_dense = EngineReport((), {"sparse": 4.0, "dense": 2.0}, "dense", "")
    assert str(chosen_dense).startswith("way: dense, 2.0 ms a training step; sparse: 4.0 ms, 2.0x as long\n")
    assert str(EngineReport((), {}, "dense", "")).startswith("way: dense\n")


def test_a_skeleton_says_what_it_holds():
    model = skeletal.models.create("lenet5", num_classes=10, in_channels=1, image_size=28)
    mask = skeletal.Mask(random_mask(model, 0.05))
    skeleton = mask.attach(model)
    assert repr(skeleton) == f"Skeleton(Sequential, 5 layers, {mask.kept:,} of {mask.total:,} weights kept)"
    skeleton.detach()
    assert repr(skeleton).endswith(" weights kept, detached)")


def test_a_network_left_whole_says_so_and_no_more():
    found = Report((), (0, 0), (), "x < y cannot be traced")
    assert str(found) == found.summary == "left whole, because x < y cannot be traced"
    assert found._repr_html_() == "<div>left whole, because x &lt; y cannot be traced</div>"


def test_names_are_escaped():
    found = skeletal.Mask({"<b>": torch.ones(2, 2)})
    assert Cells(found._repr_html_()).rows[1][0] == "<b>"

import math

import pytest
import torch
from matplotlib.image import imread

from skeletal import Mask
from skeletal.harness.output import accuracy, layers
from skeletal.harness.output.accuracy import plot_accuracy
from skeletal.harness.output.layers import layer_table, plot_layers
from skeletal.harness.output.palette import COLOURS, curve_style


def mask(first, second=4, **metadata):
    """Two layers of 12 and 2,000 weights, so many of them kept."""
    layers = {"stem.weight": torch.zeros(3, 4), "head.weight": torch.zeros(2000, 1)}
    for layer, kept in zip(layers.values(), (first, second), strict=True):
        layer.view(-1)[:kept] = 1
    return Mask(layers, metadata)


MASKS = {"force": mask(5, 1234, connected=True), "snip": mask(0, connected=False), "my own": mask(1)}
RESULTS = [
    {"method": "dense", "density": 1.0, "test": {"top1": 99.0}},
    *(
        {"method": method, "density": density, "test": {"top1": top1}}
        for method, density, top1 in [("force", 0.1, 98.0), ("force", 0.0199997, 97.0), ("snip", 0.1, 96.0)]
    ),
]
FIGURES = {
    "layers": lambda path: plot_layers(MASKS, path),
    "accuracy": lambda path: plot_accuracy(RESULTS, path, "a title"),
}


def test_a_table_of_layers():
    assert layer_table(MASKS).splitlines() == [
        "layer           weights  force       snip   my own",
        "stem.weight          12      5  0 (empty)        1",
        "head.weight       2,000  1,234          4        4",
        "kept              2,012  1,239          4        5",
        "empty layers                 0          1        0",
        "path to output             yes         no  unknown",
    ]


def test_a_table_in_markdown():
    lines = layer_table(MASKS, markdown=True).splitlines()
    assert lines[1] == "|---|---:|---:|---:|---:|"
    assert [cell.strip() for cell in lines[2].split("|")] == ["", "stem.weight", "12", "5", "0 (empty)", "1", ""]
    assert len({len(line) for line in (lines[0], *lines[2:])}) == 1


@pytest.mark.parametrize(
    "other",
    [
        Mask({"stem.weight": torch.ones(3, 4)}),
        Mask({"stem.weight": torch.ones(4, 3), "head.weight": torch.ones(2000, 1)}),
    ],
)
def test_masks_of_different_networks_have_no_common_table(other, tmp_path):
    masks = {"mine": mask(1), "other": other}
    with pytest.raises(ValueError, match="other is not a mask of the same network as mine"):
        layer_table(masks)
    with pytest.raises(ValueError, match="other is not a mask of the same network as mine"):
        plot_layers(masks, tmp_path / "layers.png")


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_figure_is_the_same_file(tmp_path, figure, kind):
    one, two = tmp_path / f"one.{kind}", tmp_path / "a" / "folder" / f"two.{kind}"
    FIGURES[figure](one)
    FIGURES[figure](two)
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size > 5000


def test_a_png_is_a_picture(tmp_path):
    FIGURES["layers"](tmp_path / "layers.PNG")
    picture = imread(tmp_path / "layers.PNG")
    height, width = picture.shape[:2]
    assert (width, height) == (8 * 150, 4.4 * 150)
    orange = [int(COLOURS["force"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    assert (abs(picture[..., :3] - orange).max(-1) < 0.02).sum() > 100, "the curve of force, in its colour"


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("name", ["figure.gif", "figure"])
def test_other_kinds_of_file_are_refused(tmp_path, figure, name):
    with pytest.raises(ValueError, match=rf"{name}: the name has to end in \.png, \.svg or \.pdf"):
        FIGURES[figure](tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def axes(monkeypatch):
    """The axes of the last figure that was to be saved."""
    figures = []
    for module in (accuracy, layers):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    return lambda: figures[-1].get_axes()[0]


def curves(axes):
    """What is drawn, by its label: x and y."""
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_a_curve_is_a_masks_kept_weights_and_a_cross_an_empty_layer(axes):
    plot_layers(MASKS, None)
    shown = curves(axes())
    assert shown["force"] == [[0, 5], [1, 1234]]
    assert math.isnan(shown["snip"][0][1]) and shown["snip"][1] == [1, 4]  # a gap in the line
    crosses = [line for line in axes().get_lines() if line.get_marker() == "x"]
    assert [list(cross.get_xdata()) for cross in crosses] == [[], [0], []]
    assert crosses[1].get_color() == COLOURS["snip"] and 0 < crosses[1].get_ydata()[0] < 0.8
    assert [text.get_text() for text in axes().get_xticklabels()] == ["stem", "head"]
    assert axes().get_yscale() == "log"


def test_one_weight_in_one_layer_can_be_drawn(axes):
    plot_layers({"nearly empty": mask(0, 1)}, None)
    (low, high) = axes().get_ylim()
    shown = curves(axes())["nearly empty"]
    assert math.isnan(shown[0][1]) and shown[1] == [1, 1] and low < 1 < high


def test_accuracy_stands_at_its_sparsity_and_dense_is_a_line_across(axes):
    plot_accuracy(RESULTS, None, "a title")
    shown = curves(axes())
    assert shown["force"] == [[0, 98], [1, 97]] and shown["snip"] == [[0, 96]]
    assert [y for _, y in shown["dense"]] == [99, 99]
    assert [text.get_text() for text in axes().get_xticklabels()] == ["90%", "98%"]
    assert axes().get_title() == "a title"


def test_small_densities_stay_apart(axes):
    many = [{"method": "force", "density": d, "test": {"top1": 50.0}} for d in (0.0001, 0.00014, 0.000040001, 0.00004)]
    plot_accuracy(many, None, "few weights")
    assert len(curves(axes())["force"]) == 3
    assert [text.get_text() for text in axes().get_xticklabels()] == ["99.986%", "99.99%", "99.996%"]


def test_dense_networks_of_other_settings_are_lines_of_their_own(axes):
    longer = {"method": "dense, epochs=30", "density": 1.0, "test": {"top1": 99.5}}
    plot_accuracy([*RESULTS, longer], None, "two dense networks")
    shown = curves(axes())
    assert [y for _, y in shown["dense"]] == [99, 99] and [y for _, y in shown["dense, epochs=30"]] == [99.5, 99.5]
    assert [text.get_text() for text in axes().get_xticklabels()] == ["90%", "98%"]


def test_of_several_seeds_the_mean_is_drawn_with_its_deviation(axes):
    more = [{**result, "test": {"top1": result["test"]["top1"] - 2}} for result in RESULTS]
    plot_accuracy(RESULTS + more, None, "two seeds")
    assert curves(axes())["force"] == [[0, 97], [1, 96]] and curves(axes())["dense"][0][1] == 98
    bars = axes().collections[0].get_segments()
    assert [(low, high) for (_, low), (_, high) in bars] == [pytest.approx((m - 2**0.5, m + 2**0.5)) for m in (97, 96)]


def test_without_pruned_runs_the_dense_line_is_drawn_alone(axes):
    plot_accuracy(RESULTS[:1], None, "dense only")
    assert list(curves(axes())) == ["dense"] and not list(axes().get_xticks())


def test_a_method_has_one_colour_everywhere():
    assert curve_style("force", 0)["color"] == curve_style("force-0.01-1a2b", 5)["color"] == COLOURS["force"]
    assert curve_style("force-regrow", 0)["color"] == COLOURS["force-regrow"]
    assert curve_style("snip-mb", 0)["color"] == COLOURS["snip-mb"]
    assert curve_style("mine", 0)["color"] not in COLOURS.values()
    assert curve_style("mine", 0) != curve_style("mine", 1)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_curves_of_a_common_colour_differ_though_marks_come_around():
    assert len({tuple(curve_style("force", position).values()) for position in range(32)}) == 32

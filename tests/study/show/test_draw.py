import itertools
import math
import re

import numpy as np
import pytest

from skeletal.harness.config import Pruning, Setup
from skeletal.harness.output.figures import render
from skeletal.harness.output.palette import COLOURS
from skeletal.study.items.contenders import SERIES
from skeletal.study.paper.item import Cell, Item, Measurement, Panel, Reference
from skeletal.study.paper.jobs import Job
from skeletal.study.paper.scales import SCALES
from skeletal.study.show.draw import draw, mean_and_std, save
from skeletal.study.show.plot_styles import looks, method_of

SMOKE = SCALES["smoke"]
DENSITIES = (0.1, 0.01, 0.001)
METHODS = ("FORCE", "SNIP", "SNIP-MB", "GRASP", "GRASP-MB", "GRASP-It", "SynFlow", "Random")
JOB = Job(Setup(model="vgg-mini", data="digits"), Pruning(density=0.1), None)


def item(*panels, series=METHODS):
    cells = [Cell(panel.key, name, JOB, lambda result: []) for panel in panels for name in series]
    return Item("fig2", "Accuracy", "What it shows.", panels, lambda scale: cells)


def accuracy(key="", published=()):
    return Panel(key, "VGG-19", "sparsity", "test accuracy (%)", "sparsity", "linear", published)


def points(panel="", series=METHODS, seeds=3, places=DENSITIES):
    draws = np.random.default_rng(0)
    return [
        Measurement(panel, name, x, float(draws.uniform(10, 90)), seed, f"{name}-{x}-{seed}")
        for name in series
        for x in places
        for seed in range(seeds)
    ]


def axes_of(figure):
    return [axes for axes in figure.get_axes() if axes.get_visible()]


def lines_of(axes):
    """Lines of the axes that are in the legend, by their label."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def legend_of(figure):
    return [text.get_text() for part in figure.subfigs for legend in part.legends for text in legend.get_texts()]


def text_of(figure):
    return " ".join(text.get_text() for part in figure.subfigs for text in part.texts).replace("\n", " ")


def test_lines_are_means_and_bands_the_sample_deviation():
    made = points(series=["FORCE", "SNIP"])
    (axes,) = axes_of(draw(item(accuracy()), made, SMOKE))
    bands = dict(zip(["FORCE", "SNIP"], axes.collections, strict=True))
    for name, line in lines_of(axes).items():
        values = np.array([[p.y for p in made if p.series == name and p.x == x] for x in sorted(DENSITIES)])
        mean, std = values.mean(1), values.std(1, ddof=1)
        np.testing.assert_allclose(line.get_xdata(), sorted(DENSITIES))
        np.testing.assert_allclose(line.get_ydata(), mean)
        corners = bands[name].get_paths()[0].vertices
        for x, low, high in zip(sorted(DENSITIES), mean - std, mean + std, strict=True):
            there = corners[np.isclose(corners[:, 0], x), 1]
            np.testing.assert_allclose([there.min(), there.max()], [low, high])


def test_among_several_one_seed_has_no_band():
    made = [p for p in points(series=["FORCE"]) if p.x != sorted(DENSITIES)[1] or p.seed == 0]
    (axes,) = axes_of(draw(item(accuracy()), made, SMOKE))
    corners = np.concatenate([path.vertices for part in axes.collections for path in part.get_paths()])
    assert not np.isclose(corners[:, 0], sorted(DENSITIES)[1]).any()
    assert {sorted(DENSITIES)[0], sorted(DENSITIES)[-1]} <= set(corners[:, 0])


def test_one_seed_has_no_band_and_says_so():
    figure = draw(item(accuracy()), points(seeds=1), SMOKE)
    assert not axes_of(figure)[0].collections
    assert "one seed" in figure.subfigs[1].legends[0].get_title().get_text()
    assert mean_and_std([3.0]) == (3.0, None)


def test_the_legend_says_how_many_seeds():
    made = points()
    (title,) = [part.legends[0].get_title().get_text() for part in draw(item(accuracy()), made, SMOKE).subfigs[1:]]
    assert title == "mean of 3 seeds; band: one standard deviation"
    (title,) = [part.legends[0].get_title().get_text() for part in draw(item(accuracy()), made[1:], SMOKE).subfigs[1:]]
    assert "2 to 3 seeds" in title


def test_sparsity_axis_reads_as_in_the_paper():
    densities = (0.1, 0.05, 0.02, 0.01, 0.005, 0.001, 0.0001)
    (axes,) = axes_of(draw(item(accuracy()), points(places=densities), SMOKE))
    ticks = axes.get_xticks()
    words = [axes.xaxis.get_major_formatter()(tick) for tick in reversed(ticks)]
    assert words == ["90", "95", "98", "99", "99.5", "99.9", "99.99"]
    left, right = axes.get_xlim()
    assert left > right, "sparsity rises to the right"
    places = axes.transData.transform([(x, 0) for x in densities])[:, 0]
    steps = np.diff(places) / np.diff([-math.log10(x) for x in densities])
    np.testing.assert_allclose(steps, steps[0])


def test_dense_is_a_dashed_line_across():
    made = [*points(series=["FORCE"]), *points(series=["Dense"], places=[1.0])]
    (axes,) = axes_of(draw(item(accuracy(), series=["FORCE", "Dense"]), made, SMOKE))
    dense = lines_of(axes)["Dense"]
    mean = np.mean([p.y for p in made if p.series == "Dense"])
    np.testing.assert_allclose(dense.get_ydata(), [mean, mean])
    assert dense.get_linestyle() == "--" and list(dense.get_xdata()) == [0, 1]
    assert 1.0 not in axes.get_xticks(), "the dense network takes no room on the axis"


def test_published_numbers_are_hollow_and_named():
    stated = (
        Reference("SNIP", 0.01, 10.0, "paper, text"),
        Reference("Dense", 1.0, 94.0, "paper, Table 1"),
        Reference("SNIP", 0.05, 92.0, "Synaptic-Flow's data, VGG-16"),
    )
    figure = draw(item(accuracy(published=stated)), points(), SMOKE)
    (axes,) = axes_of(figure)
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "none"]
    assert [line.get_ydata()[0] for line in hollow] == [10.0, 94.0, 92.0]
    assert hollow[0].get_color() == COLOURS["snip"]
    assert legend_of(figure)[-2:] == ["paper (stated)", "Synaptic-Flow's data"]
    assert 0.05 not in axes.get_xticks()


def test_what_is_missing_is_named_and_the_scale_told():
    figure = draw(item(accuracy("a"), accuracy("b")), [*points("a"), *points("b", METHODS[1:])], SMOKE)
    assert "Missing in (b): FORCE." in text_of(figure)
    assert f"Scale: smoke. {SMOKE.about}" in text_of(figure)
    assert figure.subfigs[0].get_suptitle() == "smoke test: these numbers mean nothing"
    assert "FORCE" in legend_of(figure)
    assert not text_of(draw(item(accuracy()), points(), SMOKE, notes=False))


def test_an_item_without_any_run():
    figure = draw(item(accuracy()), [], SMOKE)
    assert "FORCE, SNIP," in text_of(figure) and not legend_of(figure)
    assert axes_of(figure)[0].texts[0].get_text() == "nothing has run yet"
    assert b">nothing has run yet<" in render(figure, "svg")


def test_zeros_on_a_log_axis_are_crosses_in_rows():
    panel = Panel("", "VGG-19", "layer", "weights left", "layers", "log")
    made = [
        Measurement("", name, x, 0.0 if x == 2 else 10.0**x, 0, "r") for name in ("FORCE", "SNIP") for x in (1, 2, 3)
    ]
    figure = draw(item(panel, series=["FORCE", "SNIP"]), made, SMOKE)
    (axes,) = axes_of(figure)
    assert all(math.isnan(line.get_ydata()[1]) for line in lines_of(axes).values())
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [list(cross.get_xdata()) for cross in crosses] == [[2], [2]]
    assert crosses[0].get_ydata() != crosses[1].get_ydata()
    assert "Crosses at the lower edge: 0." in text_of(figure)


def test_only_zeros_on_a_log_axis():
    panel = Panel("", "VGG-19", "layer", "weights left", "layers", "log")
    figure = draw(item(panel, series=["FORCE"]), [Measurement("", "FORCE", x, 0.0, 0, "r") for x in (1, 2)], SMOKE)
    (axes,) = axes_of(figure)
    assert all(math.isnan(y) for y in lines_of(axes)["FORCE"].get_ydata())
    (cross,) = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert list(cross.get_xdata()) == [1, 2]
    picture = render(figure, "svg").decode()  # an axis without a number above 0 can be drawn
    assert ">weights left<" in picture and "Crosses at the lower edge: 0." in picture


def test_of_many_layers_some_are_marked_and_every_lone_one():
    panel = Panel("", "ResNet-50", "layer", "weights left", "layers", "log")
    made = [Measurement("", "FORCE", x, 0.0 if x in (10, 12) else 1.0, 0, "r") for x in range(1, 54)]
    (axes,) = axes_of(draw(item(panel), made, SMOKE))
    marked = lines_of(axes)["FORCE"].get_markevery()
    assert 10 in marked, "the 11th layer has empty neighbours"
    assert 53 / 3 <= len(marked) <= 20


def test_a_zoomed_panel_shows_its_bottom():
    panel = Panel("c", "VGG-19", "layer", "weights left", "layers", "linear", y_max=100)
    (axes,) = axes_of(draw(item(panel, series=["FORCE"]), points("c", ["FORCE"], places=range(1, 18)), SMOKE))
    low, high = axes.get_ylim()
    assert high == 100 and -10 < low < 0, "a line at 0 is not hidden by the axis"
    assert axes.get_xlim()[0] > 0


def test_steps_are_on_a_log_axis_with_plain_numbers():
    panel = Panel("", "ResNet-50", "steps T", "gain", "log", "log")
    steps = (1, 2, 5, 10, 20, 50, 100, 300)
    (axes,) = axes_of(draw(item(panel, series=["99%"]), points(series=["99%"], places=steps), SMOKE))
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [axes.xaxis.get_major_formatter()(tick) for tick in axes.get_xticks()] == [str(step) for step in steps]


@pytest.mark.parametrize(
    ("values", "labels"), [((1.0, 1.7), ["1", "1.2", "1.6"]), ((1e-5, 1e5), ["10⁻⁵", "0.1", "10⁵"])]
)
def test_log_axes_are_labelled_in_plain_numbers(values, labels):
    panel = Panel("", "ResNet-50", "steps T", "gain", "log", "log")
    figure = draw(
        item(panel), [Measurement("", "99%", x, y, 0, "r") for x, y in zip((1, 2), values, strict=True)], SMOKE
    )
    figure.draw_without_rendering()
    (axes,) = axes_of(figure)
    assert set(labels) <= {text.get_text() for text in axes.get_yticklabels()}
    assert not any(text.get_text() for text in axes.get_yticklabels(minor=True))


def test_every_series_has_its_own_look_and_a_method_always_the_same():
    labels = [*METHODS, "Dense", "FORCE-SR", "SNIP-SR", "T=2", "T=60", "90%", "exponential", "linear", "GRASP, T=5"]
    found = looks(labels)
    assert len({look["color"] for look in found.values()}) == len(labels)
    for name in (*METHODS, "Dense"):
        assert found[name]["color"] == COLOURS[name.lower()], name
        assert looks([name, "other"])[name] == found[name]
    assert method_of("FORCE, T=60") == "force" and method_of("Forced") is None and method_of("T=60") is None


def test_no_two_criteria_of_a_study_are_drawn_alike():
    found = looks(SERIES)
    for what in ("color", "marker"):
        assert len({look[what] for look in found.values()}) == len(SERIES), what


@pytest.mark.parametrize("panels", ["a", "abc"])
def test_notes_are_wrapped_before_the_edge(panels):
    figure = draw(item(*map(accuracy, panels), series=SERIES), points("a", ["FORCE"], seeds=1), SCALES["cpu"])
    figure.draw_without_rendering()
    (notes,) = figure.subfigs[1].texts
    box = notes.get_window_extent()
    assert box.x0 > 0 and box.x1 <= figure.bbox.x1 and len(notes.get_text().splitlines()) > 1


def test_values_of_a_quantity_beside_methods_share_no_mark_with_them():
    found = looks(["SNIP", "GRASP", *(f"T={steps}" for steps in (2, 5, 10, 20, 50, 100, 300))])
    assert len({look["marker"] for look in found.values()}) == len(found)
    assert found["T=2"]["linestyle"] != found["SNIP"]["linestyle"]
    assert looks(["T=2"])["T=2"]["linestyle"] == "-"


def test_a_panel_drawn_alone_keeps_its_colours():
    first, second = accuracy("a"), accuracy("b")
    both = [*points("a", ["T=1", "T=2"]), *points("b", ["T=2"])]
    whole = draw(item(first, second, series=()), both, SMOKE)
    alone = draw(item(first, second, series=()), both, SMOKE, panels=["b"])
    assert lines_of(axes_of(alone)[0])["T=2"].get_color() == lines_of(axes_of(whole)[1])["T=2"].get_color()
    with pytest.raises(ValueError, match="unknown panel of fig2 'd'"):
        draw(item(first, second), both, SMOKE, panels=["d"])


def test_panels_stand_in_rows_of_three_at_most():
    def rows(count):
        panels = [accuracy(key) for key in "abcdef"[:count]]
        spots = [axes.get_subplotspec() for axes in axes_of(draw(item(*panels), points("a"), SMOKE))]
        return [sum(spot.rowspan.start == row for spot in spots) for row in range(spots[0].get_gridspec().nrows)]

    assert [rows(count) for count in (1, 2, 3, 4, 5, 6)] == [[1], [2], [3], [2, 2], [3, 2], [3, 3]]


@pytest.mark.parametrize("panels", ["a", "ab", "abc"])
@pytest.mark.parametrize("count", range(1, 10))
def test_the_legend_fits_the_figure(panels, count):
    series = ["FORCE", "0.1", "SNIP", "T=300", "GRASP-MB", "99.99%", "exponential", "Dense", "0.01"][:count]
    figure = draw(item(*map(accuracy, panels), series=series), points("a", series, seeds=1), SMOKE)
    figure.draw_without_rendering()
    (legend,) = figure.subfigs[1].legends
    box, whole = legend.get_window_extent(), figure.subfigs[1].bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1 + 1
    (notes,) = figure.subfigs[1].texts
    words = notes.get_window_extent()
    assert words.y1 <= box.y0 + 4 and words.x1 <= whole.x1 and words.y0 >= whole.y0


def test_words_are_readable_in_print_and_files_small(tmp_path):
    layers = [Panel(key, "ResNet-50", "layer", "weights left", "layers", "log") for key in "abcdef"]
    made = [p for panel in layers for p in points(panel.key, METHODS[:4], places=range(1, 54))]
    figure = draw(item(*layers, series=METHODS[:4]), made, SMOKE)
    assert figure.get_figwidth() == pytest.approx(3 * 3.3)
    svg, png = save(figure, tmp_path / "fig7")
    assert svg.name == "fig7.svg" and png.name == "fig7.png"
    assert svg.stat().st_size < 300_000 and png.stat().st_size < 300_000
    text = svg.read_text()
    assert (
        min(float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", text)) >= 7
    )  # of 72 to the inch: points
    assert ">weights left<" in text, "text is text"


def test_the_same_points_are_the_same_file():
    first, second = (render(draw(item(accuracy()), points(), SMOKE), "svg") for _ in range(2))
    assert first == second and b"<dc:date>" not in first


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def oklab(rgb):
    """Ottosson's perceptual space, in percent of the way from black to white."""
    cones = np.array([[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696],
                      [0.08830246, 0.28171884, 0.6299787]])  # fmt: skip
    mixed = np.array([[0.21045426, 0.79361779, -0.00407205], [1.9779985, -2.42859221, 0.45059371],
                      [0.02590404, 0.78277177, -0.80867577]])  # fmt: skip
    return 100 * mixed @ np.cbrt(cones @ np.clip(rgb, 0, 1))


@pytest.mark.parametrize("sight", SIGHT)
def test_methods_stay_apart_for_the_colour_blind(sight):
    def seen(colour):
        srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        return oklab(np.array(SIGHT[sight]) @ linear)

    places = {name: seen(COLOURS[name.lower()]) for name in (*METHODS, "Dense")} | {"paper": seen("#FFFFFF")}
    distances = {pair: np.linalg.norm(places[pair[0]] - places[pair[1]]) for pair in itertools.combinations(places, 2)}
    nearest = min(distances, key=distances.get)
    assert distances[nearest] > 10, f"{nearest}: {distances[nearest]:.1f}"
    assert seen("#FFFFFF") == pytest.approx([100, 0, 0], abs=0.1), "the test's own arithmetic"

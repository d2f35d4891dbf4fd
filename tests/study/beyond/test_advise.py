import json

import matplotlib
import pytest

from skeletal.core.masks.compare import layer_agreement, overlap
from skeletal.core.masks.mask import Mask
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.study.beyond.advice_shown import Advised, in_words, table
from skeletal.study.beyond.advise import Advice, Line, Recommendation, recommend

pytestmark = pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")


def line(density, saliency, effective=1.0, connected=True):
    return Line(density, connected, effective, 0, saliency, 1.0, None, None)


def test_advice_ends_at_the_knee():
    lines = [line(0.5, 0.9), line(0.1, 0.5), line(0.02, 0.2), line(0.01, 0.05)]
    advice = recommend(lines)
    assert (advice.density, advice.knee) == (0.02, 0.02)
    assert advice.reasons == ("at 0.01 the mean saliency of a kept weight falls: it is largest at 0.02",)
    assert recommend(lines[::-1]) == advice, "the order does not matter"


def test_a_dip_above_the_knee_is_no_knee():
    assert recommend([line(0.5, 0.9), line(0.2, 0.3), line(0.1, 0.5)]).density == 0.1


def test_advice_ends_where_kept_weights_go_to_waste():
    advice = recommend([line(0.5, 0.9), line(0.1, 0.5, effective=0.9), line(0.02, 0.2, effective=0.89)])
    assert advice.density == 0.1 and advice.knee == 0.02
    assert advice.reasons == ("at 0.02 only 89% of the kept weights lie on a path from input to output",)


def test_advice_ends_where_the_path_ends_though_a_lower_density_has_one():
    lines = [line(0.5, 0.9), line(0.1, 0.5, effective=0.0, connected=False), line(0.02, 0.2)]
    advice = recommend(lines)
    assert advice.density == 0.5 and advice.reasons == ("at 0.1 no path leads from input to output",)


def test_every_reason_is_told():
    advice = recommend([line(0.5, 0.9), line(0.1, 0.01, effective=0.5)])
    assert len(advice.reasons) == 2


def test_nothing_fails():
    advice = recommend([line(0.5, 0.9), line(0.1, 0.5)])
    assert advice.density == 0.1 and advice.reasons == ()
    assert in_words("force", advice).startswith("force: prune to density 0.1 (90% sparsity) or further: nothing fails")


def test_even_the_highest_density_fails():
    advice = recommend([line(0.1, 0.5, effective=0.8), line(0.02, 0.2)])
    assert advice.density is None and "at 0.1 only 80%" in advice.reasons[0]
    assert in_words("random", advice).startswith("random: none of the densities looked at is safe")


def test_a_network_without_any_saliency_is_advised_against():
    advice = recommend([line(0.1, 0.0, 0.0, False), line(0.02, 0.0, 0.0, False)])
    assert advice.density is None and advice.knee == 0.1


def test_no_lines_are_refused():
    with pytest.raises(ValueError, match="give at least one density"):
        recommend([])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"densities": (0.1, 1.5)}, r"density is 1\.5"),
        ({"densities": ()}, "at least one method, one density and one seed"),
        ({"seeds": ()}, "at least one method, one density and one seed"),
        ({"prunings": (Pruning(method="forc"),)}, "unknown method 'forc'"),
    ],
)
def test_senseless_advice_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Advice(**{"setup": Setup(), "prunings": (resolve(Pruning(), "quick"),), **change})


def test_from_runs_to_a_picture(tmp_path):
    snip = resolve(Pruning(method="snip"), "quick")
    advice = Advice(Setup(device="cpu"), (snip,), (0.005, 0.1), (0, 1), measure_batches=1)
    for job in advice.jobs():
        job.run(tmp_path)
    high, low = advice.lines(snip, tmp_path)
    assert (high.density, low.density) == (0.1, 0.005)
    sweeps = [advice._sweep(snip, seed) for seed in (0, 1)]
    masks = [Mask.load(sweep.file(tmp_path, 0.1)) for sweep in sweeps]
    assert high.layer_agreement == layer_agreement(*masks) and high.overlap == overlap(*masks)
    points = [sweep.folder(tmp_path).result()["points"][0] for sweep in sweeps]
    dense = [advice._dense(seed).folder(tmp_path).result() for seed in (0, 1)]
    ratios = [at["force_saliency"] / whole["force_saliency"] for at, whole in zip(points, dense, strict=True)]
    assert high.saliency == pytest.approx(sum(ratios) / 2) and high.worth == pytest.approx(high.saliency / 0.1)
    assert high.effective == min(at["effective_density"] / at["density"] for at in points)
    assert high.connected and not low.connected
    advised = recommend([high, low])
    assert advised.density == 0.1
    head, first, second, blank, *legend = table({"snip": [high, low]}).splitlines()
    assert first.split()[:2] == ["snip", "0.1"] and second.split()[1] == "0.005" and not blank
    columns = [name for name in head.split("  ") if name][3:]
    assert all(any(name.strip() in line for line in legend) for name in columns if name.strip() != "empty layers")
    found = Advised.of(advice, tmp_path)
    assert found.recommendations == {"snip": advised} and found.lines == {"snip": [high, low]}
    for kind in ("png", "svg"):
        found.save(tmp_path / f"a.{kind}")
        assert (tmp_path / f"a.{kind}").stat().st_size > 1000
    matplotlib.use("agg")
    assert len(found.plot().axes) == 3
    matplotlib.pyplot.close("all")
    assert json.loads(json.dumps(found.to_dict()))["snip"]["density"] == 0.1
    assert repr(found) == "Advised(vgg-mini on digits, at initialization; densities: snip 0.1)"
    assert in_words("snip", advised) in found._repr_html_() and str(found).startswith("vgg-mini on digits")


def test_what_is_said():
    said = in_words("force", Recommendation(0.01, 0.01, ("at 0.005 a", "at 0.005 b")))
    assert said == "force: prune to density 0.01 (99% sparsity) and no further: at 0.005 a; at 0.005 b"

import html
import json
import re
import shutil
import tempfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from skeletal.harness.config import Pruning, Setup
from skeletal.harness.store.environment import environment
from skeletal.study.dispatch.execute import record_failure
from skeletal.study.items import ITEMS
from skeletal.study.paper.collect import ERROR
from skeletal.study.paper.item import Cell, Item, Panel, Reference
from skeletal.study.paper.jobs import Job
from skeletal.study.paper.scales import SCALES
from skeletal.study.show.html_report import build
from tests.study.show.browser import FOUND, Browser

SMOKE = SCALES["smoke"]
DENSITIES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
SERIES = ("FORCE", "SNIP <&> co", "Random")
LAYERS = 17


def job(series, density, seed):
    method = {"FORCE": "force", "Random": "random"}.get(series, "snip")
    return Job(Setup(model="vgg-mini", data="digits", seed=seed), Pruning(method=method, density=density), None)


def accuracy_item(keys="ab", name="fig2", references=()):
    panels = tuple(Panel(k, "VGG", "sparsity", "test accuracy (%)", "sparsity", "linear", references) for k in keys)

    def cells(scale):
        return [
            Cell(panel.key, series, job(series, x, seed), lambda result, x=x: [(x, result["accuracy"])])
            for panel in panels
            for series in SERIES
            for x in DENSITIES
            for seed in range(3)
        ]

    return Item(name, f"Item {name}", "What it shows.", panels, cells)


def layers_item():
    def cells(scale):
        return [Cell("a", "FORCE", job("FORCE", 0.01, seed), lambda result: list(enumerate(result["layers"], 1)))
                for seed in range(3)]  # fmt: skip

    panel = Panel("a", "VGG", "layer", "fraction of weights left", "layers", "log")
    return Item("fig7", "Layers", "What is left of each.", (panel,), cells)


def finish(root, jobs):
    for one in jobs:
        folder = one.folder(root)
        folder.path.mkdir(parents=True, exist_ok=True)
        told = environment() | {"date": "2026-01-02T03:04:05+00:00", "cpu": "A <fine> processor"}
        (folder.path / "environment.json").write_text(json.dumps(told))
        accuracy = 90 - 5 * one.setup.seed + 100 * one.pruning.density
        folder.finish({"accuracy": accuracy, "layers": [10.0 ** -(i % 5) for i in range(LAYERS)]})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with everything on it: finished, failed and missing runs, tables, an item without any run."""
    root = tmp_path_factory.mktemp("study")
    stated = (Reference("SNIP <&> co", 0.01, 10.0, "paper, text"), Reference("FORCE", 0.03, 9.0, "others' data"))
    figure, table = accuracy_item(references=stated), accuracy_item("a", "table1", stated)
    jobs = figure.jobs(SMOKE)
    finish(root, [one for one in jobs if one.pruning.method != "random"])
    failed = next(one for one in jobs if one.pruning.method == "random").folder(root).path
    record_failure(failed / ERROR, MemoryError("no <room> left"))
    items = [figure, layers_item(), ITEMS["fig3"], ITEMS["table3"], table]
    return build(root, SMOKE, root / "out", items=items)


class Elements(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page.read_text())


def words(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.S)))


def test_it_is_one_file_and_the_figures_lie_beside_it(page, elements):
    assert page.name == "index.html"
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"index.html", "fig2.svg", "fig2.png", "fig7.svg", "fig7.png"}
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in elements.all("img"))
    assert not elements.all("script") and "http://" not in re.sub(r"base64,[\w+/=]+", "", page.read_text())


def test_what_goes_beyond_the_paper_is_drawn(tmp_path):
    item = accuracy_item("b", "contenders")
    finish(tmp_path, item.jobs(SMOKE))
    page = build(tmp_path, SMOKE, tmp_path / "out", items=[item])
    assert {path.name for path in page.parent.iterdir()} == {"index.html", "contenders.svg", "contenders.png"}
    assert len(Elements(page.read_text()).all("img")) == 1


def test_it_is_well_formed(elements):
    assert not elements.open
    ids = Counter(attributes["id"] for _, attributes in elements.found if "id" in attributes)
    assert ids and set(ids.values()) == {1} and all(re.fullmatch(r"[A-Za-z][\w-]*", name) for name in ids)
    for attributes in elements.all("a"):
        assert not attributes["href"].startswith("#") or attributes["href"][1:] in ids
    assert {attributes["aria-labelledby"] for attributes in elements.all("section")} <= set(ids)
    assert len(elements.all("h1")) == 1 and len(elements.all("img")) == 3
    assert all(len(image["alt"]) > 20 for image in elements.all("img"))


def test_numbers_have_mean_deviation_seeds_and_runs(page, elements):
    # 90, 85 and 80, and 100 times the density
    assert "95.0 ± 5.0 (3)" in words(page) and "86.0 ± 5.0 (3)" in words(page)
    runs = [attributes["title"].split(", ") for attributes in elements.all("abbr")]
    assert runs and all(len(named) == 3 for named in runs)
    for named in runs:
        assert all((page.parent.parent / run / "result.json").exists() for run in named)


def test_links_lead_to_the_runs(page, elements):
    links = [attributes["href"] for attributes in elements.all("a") if not attributes["href"].startswith("#")]
    assert len(links) == 2 * len(DENSITIES) * 3 * 2 + 3  # two items with the same runs, and the layers'
    assert all((page.parent / link / "result.json").exists() for link in links)


def test_published_numbers_stand_beside_with_their_source(page):
    assert "10.0 a" in words(page) and "a paper, text" in words(page)
    assert "97%" not in words(page), "no column for what only others have"


def test_gaps_name_the_command_that_fills_them(page):
    root = page.parent.parent
    told = f"skeletal study run fig2 --scale smoke --methods Random --root {root}"
    assert told in words(page)
    assert "36 of 54 runs, 1 failed" in words(page)
    assert "18 runs are missing" in words(page)
    assert "Missing: Random." in words(page)
    assert "not at this scale" in words(page) and "skeletal study run fig3 --scale paper" in words(page)


def test_the_command_runs_no_more_than_the_gap(tmp_path):
    item = accuracy_item()
    finish(tmp_path, [one for one in item.jobs(SMOKE) if one.pruning.method != "force"])
    text = build(tmp_path, SMOKE.altered(epochs=2, seeds=3), tmp_path / "page.html", items=[item]).read_text()
    assert "fig2 --scale smoke --methods FORCE --epochs 2 --seeds 3 --root" in text


def test_failures_are_told_and_escaped(page):
    assert "no <room> left" in words(page) and "<room>" not in page.read_text()


def test_what_it_ran_on(page):
    assert "A <fine> processor" in words(page) and "2026-01-02" in words(page)
    assert "torch 2." in words(page)


def test_table_3_is_counted(page):
    assert "ResNet-50, CIFAR-10" in words(page) and "23.52" in words(page)


def test_a_study_that_has_not_begun(tmp_path):
    page = build(tmp_path / "nothing", SMOKE, tmp_path / "page.html", items=[accuracy_item()])
    assert "0 of 54 runs" in words(page) and "Nothing has run yet." in words(page)
    assert not (tmp_path / "nothing").exists(), "looking leaves nothing behind"
    assert not Elements(page.read_text()).all("img")


def test_a_damaged_result_is_named(tmp_path):
    item = accuracy_item()
    (one, *_) = item.jobs(SMOKE)
    finish(tmp_path, [one])
    (one.folder(tmp_path).path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        build(tmp_path, SMOKE, tmp_path / "page.html", items=[item])


@pytest.fixture(scope="module")
def browser():
    if FOUND is None:
        pytest.skip("no chromium, chromium-browser or google-chrome here")
    profile = Path(tempfile.mkdtemp())
    try:
        with Browser(profile) as running:
            yield running
    finally:
        shutil.rmtree(profile, ignore_errors=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser(page, browser, width, dark):
    browser.open(page.as_uri(), width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)") == [True] * 3
    inside, outside = browser.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert inside <= outside == pytest.approx(width, abs=20)
    boxes = browser.evaluate("[...document.querySelectorAll('.box')].map(box => box.scrollWidth > box.clientWidth)")
    assert any(boxes) == (width == 360), "wide tables scroll in their own box"
    colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(22, 24, 27)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_stand_out(page, browser, dark):
    """Contrast of every word with the page is at least WCAG AA's 4.5."""
    browser.open(page.as_uri(), width=1200, dark=dark)
    pairs = browser.evaluate("""[...new Set([...document.querySelectorAll('main *, header *, nav *')].map(part =>
        getComputedStyle(part).color))].map(ink => [ink, getComputedStyle(document.body).backgroundColor])""")
    assert len(pairs) > 3

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for pair in pairs:
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


def test_the_browser_would_complain(tmp_path, browser):
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='none.png'><script>console.error('x')</script><p style='width:2000px'>wide</p>")
    browser.open(bad.as_uri(), width=360)
    assert len(browser.requests()) == 2 and len(browser.complaints()) >= 2
    assert browser.evaluate("document.images[0].naturalWidth") == 0
    assert browser.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")

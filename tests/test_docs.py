"""The pages of docs/ exist, link to what is there, and agree with the table of methods."""

import re
from pathlib import Path

import pytest

import skeletal

DOCS = Path(__file__).parent.parent / "docs"
METHODS = DOCS / "methods"
PAGES = sorted(DOCS.rglob("*.md"))


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text())


@pytest.mark.parametrize("method", skeletal.METHODS)
def test_every_method_has_a_page_that_the_index_links_to(method):
    page = METHODS / f"{method}.md"
    text = page.read_text()
    assert text.startswith(f"# {method}\n")
    assert f'method="{method}"' in text
    assert f"../img/methods/{method}.png" in links(page)
    assert f"{method}.md" in links(METHODS / "README.md")


def test_there_are_no_pages_of_other_methods():
    assert {page.stem for page in METHODS.glob("*.md")} == {"README", *skeletal.METHODS}


def test_the_index_has_the_steps_of_the_code():
    rows = dict(re.findall(r"^\| \[([\w-]+)\]\(.*?\| (\d+) \|", (METHODS / "README.md").read_text(), re.MULTILINE))
    assert rows == {name: str(method.steps) for name, method in skeletal.METHODS.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_and_pictures_exist(page):
    for link in links(page):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        found = page.parent / target if target else page
        assert found.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], link


TEXTS = [*PAGES, *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]


def prose(page: Path):
    """The lines of running text: no code, tables, headings, formulas or pictures; what is code in them left out."""
    text = re.sub(r"^ *```.*?^ *```$|^\$\$.*?\$\$$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in text.splitlines():
        if not re.match(r"\s*(\||#|!|<|\[!)", line):
            yield re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_text_is_wrapped_so_that_changes_of_it_can_be_read(page):
    assert not [line for line in prose(page) if len(line) > 110]


def test_every_page_is_in_the_index():
    listed = {line for block in re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
              for line in block.splitlines() if line and not line.startswith(":")}  # fmt: skip
    listed |= {f"methods/{page.stem}" for page in METHODS.glob("*.md")} if "methods/*" in listed else set()
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"}
    assert pages == listed - {"methods/*"}


def test_the_citation_is_of_this_version():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((DOCS.parent / "CITATION.cff").read_text())
    assert citation["version"] == skeletal.__version__
    assert citation["license"] == "MIT" and citation["type"] == "software"
    assert citation["references"][0]["title"] in " ".join((DOCS.parent / "README.md").read_text().split())


def test_the_public_names_are_in_the_reference():
    page = (DOCS / "reference" / "python.md").read_text()
    for name in set(skeletal.__all__) - {"__version__", "models"}:
        assert re.search(rf":: skeletal\.{name}$", page, re.MULTILINE), name

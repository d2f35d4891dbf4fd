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

"""How the pages of this folder become a website: `sphinx-build -W docs build/docs`, without a network."""

import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx

import skeletal
from skeletal.cli import app as command_line

project = "skeletal"
author = "The skeletal authors"
version = release = skeletal.__version__
html_title = "skeletal"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_theme_options = {"source_view_link": "", "top_of_page_buttons": []}
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # links to "page.md#a-title" work here as they do on a code host
nitpicky = False  # annotations name types of torch, whose own pages are elsewhere

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Warns", "params_style")]

# A public name is shown under the name users import it by, wherever its code lies.
autodoc_type_aliases = {"Selection": "Selection", "Tensors": "Tensors"}

html_math_renderer = "mathml"


def _mathml(latex: str, display: str) -> str:
    mathml = latex2mathml.converter.convert(latex, display=display).replace("<mi>&#x029F5;</mi>", "<mo>&#x2216;</mo>")
    return re.sub(r"(<mi>(?:log|exp|max|min)</mi>)(?=<mi>)", r'\1<mspace width="0.17em"/>', mathml)


def _inline(translator: Any, node: nodes.Element) -> None:
    translator.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.Element) -> None:
    translator.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


_OUTSIDE = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}


def _options_as_code(line: re.Match[str]) -> str:
    parts = line[0].split("`")
    parts[::2] = [re.sub(r"(?<!\S)--[a-z][\w.-]*", r"`\g<0>`", text) for text in parts[::2]]  # or it would be a dash
    return "`".join(parts)


def _from_elsewhere(_: Sphinx, page: str, source: list[str]) -> None:
    """Two pages stand beside this folder, where a code host looks for them; the commands describe themselves."""
    if page in _OUTSIDE:
        source[0] = (Path(__file__).parent.parent / _OUTSIDE[page]).read_text().replace("](docs/", "](")
        source[0] = source[0].replace("](LICENSE)", "](../LICENSE)")
    if page == "reference/commands":
        every = command_line.generate_docs(output_format="markdown", heading_level=2, recursive=True)
        every = re.sub(r"#+ Table of Contents\n.*?(?=\*\*Commands)", "", every, count=1, flags=re.DOTALL)
        source[0] += re.sub(r"^(?!skeletal )\S.*", _options_as_code, every, flags=re.MULTILINE)
    for inside, outside in _OUTSIDE.items():
        source[0] = re.sub(rf"\]\((\.\./)*{outside}", f"](/{inside}.md", source[0])


def _no_type(_app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in an attribute's docstring for its type; an empty one says no."""
    if what in ("attribute", "property", "data") and lines:
        lines[0] = f": {lines[0]}"


def _as_markdown(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Docstrings have code in `single` backticks, as Markdown does; reStructuredText wants two."""
    for i, line in enumerate(lines):
        if "``" in line or ":`" in line or line.count("`") % 2:
            continue
        parts = line.split("`")
        parts[::2] = [text.replace("|", r"\|") for text in parts[::2]]  # elsewhere than in code
        lines[i] = "``".join(parts)


def setup(app: Sphinx) -> None:
    """Mathematics as MathML, which browsers draw without a script from elsewhere; commands from their own help."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", _from_elsewhere)
    app.connect("autodoc-process-docstring", _no_type, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _as_markdown, priority=900)  # after it

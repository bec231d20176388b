"""Settings of Sphinx: `python -m sphinx -W --keep-going docs build/docs`."""

import builtins
import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref

import altclip_jax

project = "altclip_jax"
version = release = altclip_jax.__version__
author = "the altclip_jax authors"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
html_theme = "furo"
html_title = f"altclip_jax {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True, "special-members": "__call__"}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"  # a single backtick in a docstring is code, as in Markdown
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

myst_heading_anchors = 3

# Every reference to something of this library must be found; what is not documented here lies in other libraries.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!altclip_jax\b).*"),
    (r"py:.*", r".*\._\w+"),  # private bases
    (
        r"py:.*",
        r"altclip_jax\.(inference\.pmapped\.Tree|distributed\.Result|data\.batches\.(Job|Done|Batch)|data\.s\w+\.(Any|)(Source|Sample))",
    ),  # type variables
]


def setup(app: Any) -> None:
    """Adapts Sphinx to how docstrings are written here."""
    app.connect("autodoc-process-docstring", _escape_marks, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _shorten)
    app.connect("doctree-read", _unlink_builtins)


def _escape_marks(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escapes what would be markup: docstrings are plain text, with code in single backticks."""
    for place, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"([*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
        lines[place] = "`".join(parts)


def _shorten(app: Any, what: str, name: str, obj: Any, options: Any, *texts: str | None) -> tuple[str | None, ...]:
    """Gives types in a signature their public names, and leaves out what every Flax module takes."""
    return tuple(
        text
        and re.sub(r", parent: .*?, name: str \| None = None(?=\))", "", text)
        .replace("jaxlib._jax.Array", "Array")
        .replace("<class 'jax.numpy.float32'>", "float32")
        for text in texts
    )


def _unlink_builtins(app: Any, doctree: Any) -> None:
    """Leaves Python's own types without a link, for which a field of that name would be found."""
    for node in list(doctree.findall(pending_xref)):
        if node.get("reftarget") in vars(builtins):
            node.replace_self(nodes.Text(node["reftarget"]))

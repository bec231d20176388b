"""Documents and API reference are built without a warning, and no public name is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import altclip_jax

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder that Sphinx wrote; a warning, also of a reference that leads nowhere, is an error."""
    folder = tmp_path_factory.mktemp("built")
    program = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_in_the_reference(built):
    pages = "".join(page.read_text(encoding="utf-8") for page in (built / "api").glob("*.html"))
    missing = [name for name in altclip_jax.__all__ if f'id="altclip_jax.{name}"' not in pages]
    assert missing == ["__version__"]


def test_every_document_is_a_page(built):
    assert all((built / f"{path.stem}.html").is_file() for path in (ROOT / "docs").glob("*.md"))

"""What CONTRIBUTING.md and the READMEs of scripts/ name is there."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/**/README.md"))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = re.findall(r"(?:altclip_jax|tests|docs|scripts|recipes)/[\w./-]*\w/?", text)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert paths or links
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.usefixtures("program")  # which puts them on the path
def test_every_program_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for module in re.findall(r"python -m (scripts[\w.]*\w)", text):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("name", ["AS_FOR_USERS", "SLOW"])
def test_what_the_tests_treat_otherwise_exists(name):
    tree = ast.parse((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (value,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets) == name]
    paths = eval(ast.unparse(value))
    assert paths
    assert [path for path in paths if not (ROOT / "tests" / path).exists()] == []

"""Annotations can be evaluated, all of them, and their shapes are those of what the core takes and returns."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import altclip_jax

MODULES = [
    found.name
    for found in pkgutil.walk_packages(altclip_jax.__path__, "altclip_jax.")
    if not found.name.endswith("__main__")
]


def annotations(tree):
    """Yields every annotation in a module, also of functions in functions."""
    for node in ast.walk(tree):
        found = [getattr(node, "annotation", None), getattr(node, "returns", None)]  # arguments, fields; functions
        yield from (annotation for annotation in found if annotation is not None)


def evaluated(annotation, names):
    found = eval(ast.unparse(annotation), names)
    return evaluated(ast.parse(found, mode="eval"), names) if isinstance(found, str) else found


def test_every_annotation_can_be_evaluated():
    wrong = []
    for name in MODULES:
        module = importlib.import_module(name)
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        names = dict(vars(module))
        for node in tree.body:  # what only a type checker imports
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                exec(ast.unparse(node.body), names)
        for annotation in annotations(tree):
            try:
                evaluated(annotation, names)
            except Exception as error:
                wrong.append(f"{name}, line {annotation.lineno}: {ast.unparse(annotation)} ({error!r})")
    assert not wrong


def test_shapes_are_those_of_what_the_core_takes_and_returns():
    program = Path(__file__).with_name("checked_core.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr[-4000:]

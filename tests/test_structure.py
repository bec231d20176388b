"""The house: a room imports only from rooms below it."""

import ast
from pathlib import Path

import altclip_jax

ROOT = Path(altclip_jax.__file__).parent
# From the ground up. A part may import itself and what stands before it.
FLOORS = (
    "version",
    "sentences",
    "files",
    "machine",
    "exit_codes",
    "config",
    "model",
    "assets",
    "processing",
    "data",
    "quantization",
    "weights",
    "distributed",
    "parallel",
    "pretrained",
    "checkpoints",
    "student",
    "inference",
    "sweep",
    "export",
    "corpus",
    "evaluation",
    "training",
    "planning",
    "cli",
)


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "altclip_jax":
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from names
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from ((name[1:] or ["the index"])[0] for name in names if name[0] == "altclip_jax")


def test_a_room_imports_only_from_rooms_below_it():
    wrong, seen = [], set()
    for file in sorted(ROOT.rglob("*.py")):
        part = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        seen.add(part)
        allowed = FLOORS[: FLOORS.index(part) + 1]
        wrong += [f"{file.relative_to(ROOT)} imports {name}" for name in imported(file) if name not in allowed]
    assert not wrong
    assert seen == set(FLOORS)


def test_the_model_imports_its_configuration_and_nothing_else_of_the_house():
    for file in (ROOT / "model").rglob("*.py"):
        assert set(imported(file)) <= {"config", "model"}, file

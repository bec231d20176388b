"""The command keeps what it compiled, where it is told to, and nowhere if it is told so."""

import os
import subprocess
import sys

import pytest

from altclip_jax.assets import PICTURES

COMMAND = [
    sys.executable,
    "-m",
    "altclip_jax",
    "similarity",
    str(PICTURES / "cat_noto.png"),
    "--texts",
    "cat",
    "--json",
]


def answered(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "ALTCLIP_"))}
    done = subprocess.run(COMMAND, env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_the_second_time_is_the_first_without_compiling(tmp_path):
    first = answered(XDG_CACHE_HOME=str(tmp_path))
    files = sorted(path for path in (tmp_path / "altclip_jax" / "compiled").rglob("*-cache"))
    assert files
    assert answered(XDG_CACHE_HOME=str(tmp_path)) == first == (first[0], "")
    assert sorted(path for path in (tmp_path / "altclip_jax" / "compiled").rglob("*-cache")) == files


@pytest.mark.parametrize("said", ["off", "unwritable", "jax"])
def test_it_can_be_switched_off_and_is_not_needed(tmp_path, said):
    (tmp_path / "file").write_text("where a folder should be")
    environment = {
        "off": {"XDG_CACHE_HOME": str(tmp_path / "cache"), "ALTCLIP_COMPILATION_CACHE": "off"},
        "unwritable": {"XDG_CACHE_HOME": str(tmp_path / "file")},
        "jax": {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")},
    }[said]
    out, err = answered(**environment)
    assert out
    assert err == ""
    assert not (tmp_path / "cache").exists()

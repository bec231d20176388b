"""What the README shows is what comes out."""

import contextlib
import io
import shlex
from pathlib import Path

import pytest

from altclip_jax import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def following(blocks_of):
    """Returns a function (language, word) -> the one block in that language with that word, and the text after it."""

    def find(language, word):
        every = blocks_of("README.md")
        ((place, block),) = [
            (i, block) for i, block in enumerate(every) if block.language == language and word in block.text
        ]
        assert every[place + 1].language == "text"
        return block.text, every[place + 1].text

    return find


def test_the_python_of_the_readme_prints_what_it_shows(following):
    code, text = following("python", "AltCLIP.from_pretrained()")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert output.getvalue() == text


def test_the_first_command_of_the_readme_prints_what_it_shows(following, capsys, monkeypatch):
    code, text = following("bash", "altclip classify")
    monkeypatch.chdir(ROOT)
    command = shlex.split(code.partition("altclip classify ")[2])
    assert cli.main(["classify", *command]) == 0
    assert capsys.readouterr().out == text

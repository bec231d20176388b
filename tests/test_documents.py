"""What the README shows is what comes out."""

import contextlib
import io
import re
import shlex
from pathlib import Path

from altclip_jax import cli

ROOT = Path(__file__).parents[1]


def blocks(name):
    """Returns the fenced blocks of a document as (language, text), in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def following(name, language, word):
    """Returns the one block in a language that has a word in it, and the text block after it."""
    every = blocks(name)
    ((place, (_, code)),) = [(i, block) for i, block in enumerate(every) if block[0] == language and word in block[1]]
    told, text = every[place + 1]
    assert told == "text"
    return code, text


def test_the_python_of_the_readme_prints_what_it_shows():
    code, text = following("README.md", "python", "AltCLIP.from_pretrained()")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert output.getvalue() == text


def test_the_first_command_of_the_readme_prints_what_it_shows(capsys, monkeypatch):
    code, text = following("README.md", "bash", "altclip classify")
    monkeypatch.chdir(ROOT)
    command = shlex.split(code.partition("altclip classify ")[2])
    assert cli.main(["classify", *command]) == 0
    assert capsys.readouterr().out == text

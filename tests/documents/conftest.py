"""The fenced blocks of the documents, and a shell in which `altclip` is this process."""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from altclip_jax import cli

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"((?:^<!--.*?-->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_REASON = re.compile(r"<!-- not run by the tests: (.+?) -->", re.DOTALL)
# What a training run in a document is cut to, and nothing else about it: the last setting of a name wins.
CUT = ["steps=2", "batch_size=16", "optimizer.warmup_steps=1", "evaluation.every=2", "checkpoints.every=2"]
# Hands its arguments and what stands on its standard input to this process, and prints what comes back.
_CLIENT = """#!{python} -SE
import json, os, socket, sys
words = sys.argv[1:] + ({cut!r} if "train" in sys.argv[1:] else [])
if words[:1] == ["launch"]:  # which starts processes, as a program with threads had better not
    os.execv({python!r}, [{python!r}, "-m", "altclip_jax", *words])
given = {{"words": words, "cwd": os.getcwd(), "input": sys.stdin.buffer.read().decode() if "-" in words else ""}}
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    link.sendall(json.dumps(given).encode())
    link.shutdown(socket.SHUT_WR)
    answer = json.loads(b"".join(iter(lambda: link.recv(65536), b"")))
sys.stdout.buffer.write(answer["output"].encode())
sys.stderr.buffer.write(answer["errors"].encode())
sys.exit(answer["code"])
"""


class Block(NamedTuple):
    language: str  # "" where the fence names none
    text: str
    line: int  # of the fence
    not_run: str | None  # why
    after: str  # what stands between it and the next one


@pytest.fixture(scope="session")
def blocks_of():
    """Returns a function of a document's name -> its fenced blocks, in order."""

    def read(name):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = list(_FENCE.finditer(text))
        assert len(re.findall("^ *```", text, re.MULTILINE)) == 2 * len(found), f"{name} has a fence that is not closed"
        ends = [match.start() for match in found][1:] + [len(text)] * bool(found)
        return [
            Block(
                match[2],
                match[3],
                line=text.count("\n", 0, match.start(2)) + 1,
                not_run=reason[1] if (reason := _REASON.search(match[1])) else None,
                after=text[match.end() : end],
            )
            for match, end in zip(found, ends, strict=True)
        ]

    return read


@pytest.fixture(scope="session")
def shell(tmp_path_factory):
    """Returns a function (script, folder) -> its output; what ends otherwise than with 0 fails the test.

    The script is bash's. Its `altclip` runs here, where jax is imported and compiled programs are kept, and a run of
    `altclip train` is cut to two steps.
    """
    tools = tmp_path_factory.mktemp("tools")
    address = str(tools / "altclip.socket")
    client = tools / "altclip"
    client.write_text(_CLIENT.format(python=sys.executable, address=address, cut=CUT), encoding="utf-8")
    client.chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS")  # eight devices are this process' own

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        server.settimeout(0.02)

        def run(script, folder):
            (folder / ".venv").mkdir(exist_ok=True)
            if not (folder / ".venv" / "bin").exists():
                (folder / ".venv" / "bin").symlink_to(tools)
            with (folder / ".output").open("w+", encoding="utf-8") as output:
                process = subprocess.Popen(
                    ["bash", "-euo", "pipefail", "-c", script],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                while process.poll() is None:
                    with contextlib.suppress(TimeoutError):
                        _answer(server.accept()[0])
                output.seek(0)
                said = output.read()
            assert process.returncode == 0, f"{script}\nended with {process.returncode}:\n{said}"
            return said

        yield run


def _answer(link):
    """Runs the command that a client of the shell asks for."""
    link.settimeout(None)
    with link:
        given = json.loads(b"".join(iter(lambda: link.recv(65536), b"")))
        words, output, errors = given["words"], io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(given["cwd"]))
            stack.enter_context(contextlib.redirect_stdout(output))
            stack.enter_context(contextlib.redirect_stderr(errors))
            stack.callback(setattr, sys, "stdin", sys.stdin)
            sys.stdin = io.TextIOWrapper(io.BytesIO(given["input"].encode()))
            try:
                code = cli.main(words)
            except SystemExit as ended:
                code = ended.code
        link.sendall(json.dumps({"code": code, "output": output.getvalue(), "errors": errors.getvalue()}).encode())

"""The fenced blocks of the documents."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"((?:^<!--.*?-->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "not run by the tests: "


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
        ends = [match.start() for match in found[1:]] + [len(text)]
        reasons = [re.search(rf"<!-- {NOT_RUN}(.+?) -->", match[1]) for match in found]
        blocks = [
            Block(
                match[2],
                match[3],
                text.count("\n", 0, match.start(2)) + 1,
                reason and reason[1],
                text[match.end() : end],
            )
            for match, reason, end in zip(found, reasons, ends, strict=True)
        ]
        assert text.count("\n```") == 2 * len(blocks), f"{name} has a fence that is not closed, or is indented"
        return blocks

    return read


@pytest.fixture(scope="session")
def document_names():
    """README and everything in docs/, relative to the repository."""
    return ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

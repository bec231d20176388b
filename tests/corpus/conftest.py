"""The embedded model, pictures, and small corpora."""

import json

import pytest

from altclip_jax import AltCLIP
from altclip_jax.assets import PICTURES


@pytest.fixture(scope="session")
def clip():
    return AltCLIP.from_pretrained()


@pytest.fixture(scope="session")
def pictures():
    return sorted(PICTURES.glob("*.png"))


@pytest.fixture
def mixed(tmp_path, pictures, write_tar):
    """A folder with a list, a tar and captions, of which some cannot be read; and what must have a row."""
    folder = tmp_path / "mixed"
    (folder / "pictures").mkdir(parents=True)
    for path in pictures[:5]:
        (folder / "pictures" / path.name).write_bytes(path.read_bytes())
    (folder / "pictures" / "broken.png").write_bytes(b"no picture")
    (folder / "pictures" / pictures[0].with_suffix(".txt").name).write_text("beside it\n", encoding="utf-8")
    records = [
        {"image": str(pictures[6]), "caption": ["one", "two"]},
        {"image": [str(pictures[7]), "missing.png"], "captions": {"zh": "闹钟", "en": "clock"}},
        {"caption": "alone", "language": "en"},
        {"image": str(pictures[8]), "caption": " "},
        {},
        {"image": 3},
    ]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (folder / "list.jsonl").write_text("\n".join([*lines, "{"]) + "\n", encoding="utf-8")
    write_tar(
        folder / "shard.tar",
        {
            "a.png": pictures[9].read_bytes(),
            "a.txt": "Füße".encode(),
            "b.png": pictures[10].read_bytes(),
            "c.json": b'{"caption": "no picture"}',
            "d.png": b"broken",
            "d.txt": b"a caption all the same",
        },
    )
    (folder / "captions.txt").write_bytes(b"first\n\n \nx\r\n\r\nletzte Zeile")
    return folder

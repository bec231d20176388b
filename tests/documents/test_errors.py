"""docs/errors.md: each sentence is what is really said."""

import contextlib
import gzip
import io
import json
import pickle
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

import altclip_jax
from altclip_jax import cli, parallel
from altclip_jax.assets import PICTURES, default_checkpoint

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (`+)(.+?)\1 \| (`+)(.+?)\3 \|.*\|$", re.MULTILINE)
RUN = """
stage = "contrastive"
folder = "run"
steps = 2
batch_size = 8
model.source = "model"
data = { max_length = 16, train = [{ path = "list.jsonl" }] }
optimizer.warmup_steps = 1
"""
FILES = {
    "notes.txt": "no picture",
    "no_picture.png": "<html>",
    "list.jsonl": '{"image": "photos/cat.png", "caption": "a cat"}\n',
    "lost.jsonl": "".join(f'{{"image": "photos/{number}.png", "caption": "a cat"}}\n' for number in range(30)),
    "columns.csv": "file,alt\nphotos/cat.png,a cat\n",
    "nothing.csv": "",
    "labels.csv": "image,label\nphotos/cat.png,dog\n",
    "classes.json": '{"cat": {"en": "cat"}, "rocket": {"en": "rocket"}}',
    "uneven.json": '{"en": ["cat", "rocket"], "zh": ["猫"]}',
    "templates.json": '["a picture"]',
    "run.toml": RUN,
    "broken.toml": "stage = contrastive",
}
BEFORE = """
convert model tower --part text
convert model as_orbax --form orbax
convert model half --dtype float16
convert model few --quantize int4
embed photos --output corpus
index corpus
embed photos --output unfinished
embed notes.txt --output captions
index captions
train run.toml
"""


class Hostile:
    def __reduce__(self):
        return eval, ("1 / 0",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, and with what is wrong in the ways that the document names."""
    folder = tmp_path_factory.mktemp("errors")
    for name in ("model", "cut", "unfit", "no_weights", "hostile", "other", "misfit", "unturned", "large"):
        shutil.copytree(default_checkpoint(), folder / name)
    weights = "model.safetensors"
    data = (folder / "model" / weights).read_bytes()
    (folder / "cut" / weights).write_bytes(data[: len(data) // 2])
    tensors = load_file(folder / "model" / weights)
    del tensors["logit_scale"]
    save_file({**tensors, "extra.weight": np.zeros(3, np.float32)}, folder / "unfit" / weights)
    tensors = load_file(folder / "model" / weights)
    tensors["text_projection.weight"][0, 0] = 70000
    save_file(tensors, folder / "large" / weights)
    (folder / "no_weights" / weights).unlink()
    (folder / "hostile" / weights).unlink()
    with zipfile.ZipFile(folder / "hostile" / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Hostile(), protocol=2))
    config = json.loads((folder / "other" / "config.json").read_text(encoding="utf-8"))
    (folder / "other" / "config.json").write_text(json.dumps({**config, "model_type": "blip"}), encoding="utf-8")
    config["text_config"]["pad_token_id"] = 5
    (folder / "misfit" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    altclip_jax.AltCLIPImageProcessor(crop_size=48).save_pretrained(folder / "misfit")
    altclip_jax.AltCLIPImageProcessor.from_pretrained(
        folder / "unturned", apply_exif_orientation=False
    ).save_pretrained(folder / "unturned")
    for name in ("empty", "photos"):
        (folder / name).mkdir()
    repository = folder / "cache" / "models--some--model"
    shutil.copytree(folder / "no_weights", repository / "snapshots" / ("0" * 40))
    (repository / "snapshots" / ("0" * 40) / "preprocessor_config.json").unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="ascii")
    for name in ("cat", "rocket"):
        shutil.copy(PICTURES / f"{name}_noto.png", folder / "photos" / f"{name}.png")
    (folder / "cut.png").write_bytes((folder / "photos" / "cat.png").read_bytes()[:400])
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "packed.tar").write_bytes(gzip.compress(bytes(1024)))
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), folder / "columns.parquet")
    with contextlib.chdir(folder):
        for line in BEFORE.strip().splitlines():
            assert said("altclip " + line, {}) is None, line
        (folder / "unfinished" / "part-00000.json").unlink()
    shutil.copytree(folder / "as_orbax", folder / "both")
    shutil.copy(folder / "model" / weights, folder / "both")
    shutil.copytree(folder / "model", folder / "restored")
    for name in ("new", "old"):
        (folder / "restored" / ".altclip_jax.save" / name).mkdir(parents=True)
    shutil.copy(folder / "model" / "config.json", folder / "restored" / ".altclip_jax.save" / "old")
    (folder / "restored" / ".altclip_jax.save" / "journal.json").write_text('{"old": ["config.json"], "new": []}')
    return folder


def said(code, names):
    """Returns what a command or an expression says is wrong, or None."""
    if not code.startswith("altclip "):
        try:
            eval(code, names)
        except (ValueError, TypeError, OSError) as error:
            return str(error)
        return None
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        done = cli.main(shlex.split(code)[1:])
    return errors.getvalue().partition("altclip: ")[2].rstrip("\n") if done == 1 else None


def test_every_row_says_what_is_said(folder, monkeypatch):
    monkeypatch.chdir(folder)
    clip = altclip_jax.AltCLIP.from_pretrained("model")
    batch = clip.processor(text=["cat", "dog"], images="photos/cat.png", padding=True)
    names = {
        **{name: getattr(altclip_jax, name) for name in altclip_jax.__all__},
        **{"clip": clip, "model": clip.model, "params": clip.params, "processor": clip.processor},
        **{"ids": batch["input_ids"], "pixels": batch["pixel_values"], "jax": jax, "np": np, "parallel": parallel},
    }
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = [(match[2].strip(), match[4].strip()) for match in ROW.finditer(text)]
    assert len(rows) == len(re.findall(r"^\| `", text, re.MULTILINE)) > 70
    wrong = []
    for code, sentence in rows:
        pattern = re.escape(sentence).replace("…", ".*").replace(r"\ ⏎\ ", r"\n\s*")
        found = said(code, names)
        if found is None or not re.fullmatch(pattern, found, re.DOTALL):
            wrong.append(f"{code}\n  expected {sentence}\n  found    {found and found[:300]}")
    assert not wrong, "\n".join(wrong)

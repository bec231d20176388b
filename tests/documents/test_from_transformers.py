"""docs/from_transformers.md: each example of transformers and its twin here give the same."""

import os

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from altclip_jax import AltCLIPModel
from altclip_jax.assets import PICTURES, default_checkpoint

torch.set_num_threads(1)
DOCUMENT = "docs/from_transformers.md"
EQUAL = re.compile(r"\nEqual: (`.+?`)\.", re.DOTALL)
# absolute, by name (docs/parity.md); of the rest a share of the largest value, if above 1, where noise was 1.2e-6
TOLERANCES = {"logits_per_image": 1e-4, "text_embeds": 5e-6, "image_embeds": 5e-6, "inputs": 0}
SHARE = 5e-6


@pytest.fixture(scope="module")
def pairs(blocks_of):
    """(transformers' block, ours, the names of what is equal), in order."""
    blocks = [block for block in blocks_of(DOCUMENT) if block.language == "python"]
    assert len(blocks) % 2 == 0
    found = []
    for theirs, ours in zip(blocks[::2], blocks[1::2], strict=True):
        assert "transformers import" in theirs.text, theirs.line
        assert "altclip_jax import" in ours.text, ours.line
        equal = EQUAL.search(ours.after)
        assert bool(equal) != bool(theirs.not_run), f"nothing is said to be equal after line {ours.line}"
        found.append((theirs, ours, re.findall(r"`(\w+)`", equal[1]) if equal else []))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the id of the published model is a folder with the embedded one."""
    folder = tmp_path_factory.mktemp("from_transformers")
    shutil.copytree(default_checkpoint(), folder / "BAAI" / "AltCLIP")
    for name in ("cat", "rocket"):
        Image.open(PICTURES / f"{name}_noto.png").convert("RGB").save(folder / f"{name}.png")
    return folder


def run(block, **names):
    names = {"__name__": "__main__", **names}
    exec(compile("\n" * block.line + block.text, DOCUMENT, "exec"), names)
    return names


def assert_same(ours, theirs, name):
    if isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), name
        for key in theirs:
            assert_same(ours[key], theirs[key], name)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), name
        for left, right in zip(ours, theirs, strict=True):
            assert_same(left, right, name)
    elif isinstance(theirs, (str, int)):
        assert ours == theirs, name
    else:
        theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
        atol = TOLERANCES.get(name, SHARE * max(1, np.abs(theirs).max()))
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=atol, err_msg=name)


@pytest.mark.filterwarnings(
    "ignore:The `from_text_vision_configs` method is deprecated"
)  # the page has it all the same
def test_every_pair_gives_the_same(pairs, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for theirs, ours, equal in pairs:
        if theirs.not_run:
            compile(theirs.text, DOCUMENT, "exec")
            continue
        # random weights of the default size are of no use to anyone: their shapes will do
        place = torch.device("meta") if "# random weights" in theirs.text else contextlib.nullcontext()
        with place:
            expected = run(theirs)
        found = run(ours)
        for name in equal:
            assert_same(found[name], expected[name], name)


def test_four_bits_are_stored_and_answer_like_the_float_model(pairs, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (few,) = [run(ours) for theirs, ours, _ in pairs if theirs.not_run]
    model, params = AltCLIPModel.from_pretrained("BAAI/AltCLIP")
    expected = model.apply({"params": params}, **few["inputs"])
    assert few["params"]["text_model"]["layer_0"]["mlp"]["up"]["kernel"].scheme == "int4"
    for name in ("text_embeds", "image_embeds"):
        cosines = np.sum(np.asarray(getattr(few["outputs"], name)) * np.asarray(getattr(expected, name)), axis=1)
        assert 0.9 < cosines.mean() < 0.9999


def test_what_the_page_does_with_the_text_tower_leaves_it_random(folder, monkeypatch):
    from transformers import AltCLIPModel, AltCLIPTextModel

    monkeypatch.chdir(folder)
    whole = AltCLIPModel.from_pretrained("BAAI/AltCLIP").text_model.state_dict()
    alone = AltCLIPTextModel.from_pretrained("BAAI/AltCLIP").state_dict()
    assert list(alone) == list(whole)
    trained = [name for name, value in whole.items() if value.ndim == 2 and name.endswith("weight")]
    assert not any(torch.equal(alone[name], whole[name]) for name in trained)


def test_everything_the_table_of_names_promises_is_there():
    import altclip_jax

    text = (Path(__file__).parents[2] / DOCUMENT).read_text(encoding="utf-8")
    table = text.partition("## Names")[2].partition("##")[0]
    right = [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| `")]
    classes = {name for cell in right for name in re.findall(r"`((?:AltCLIP|CLIP)\w+|load_tokenizer)`", cell)}
    assert len(classes) > 8
    assert classes <= set(altclip_jax.__all__)

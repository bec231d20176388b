"""A save over another checkpoint, killed at any moment, leaves no mixture: neither for us nor for transformers."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers

from altclip_jax import (
    AltCLIP,
    AltCLIPConfig,
    AltCLIPImageProcessor,
    AltCLIPModel,
    AltCLIPProcessor,
    AltCLIPTokenizer,
)
from altclip_jax.assets import default_checkpoint

SIZES = {"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 4}


def made(number, folder):
    """A tiny model, whole, all whose files tell its number: 1 or 2."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(default_checkpoint() / name, folder)
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["vocab"].append([f"number {number}", -99.0])
    (folder / "tokenizer.json").write_text(json.dumps(told))
    tokenizer = AltCLIPTokenizer.from_pretrained(folder, model_max_length=10 * number)
    config = AltCLIPConfig(
        text_config={
            **SIZES,
            "num_hidden_layers": 1,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 20,
            "project_dim": 4,
        },
        vision_config={**SIZES, "num_hidden_layers": 1, "image_size": 4 * number, "patch_size": 4},
        projection_dim=4,
    )
    model = AltCLIPModel(config)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, number, np.float32), model.param_shapes())
    size = {"height": 4 * number, "width": 4 * number}
    pictures = AltCLIPImageProcessor(size={"shortest_edge": 4 * number}, crop_size=size)
    return AltCLIP(model, params, AltCLIPProcessor(pictures, tokenizer))


def in_transformers(folder):
    """The numbers that all parts tell which transformers loads, by part."""
    parts = {}
    with contextlib.suppress(OSError, RuntimeError):
        # it would go on with random numbers for what the files lack, or have in another shape
        model, told = transformers.AltCLIPModel.from_pretrained(folder, output_loading_info=True)
        assert not any(told.values())
        parts["config"] = {model.config.vision_config.image_size // 4}
        parts["weights"] = {
            float(number)
            for tensor in model.state_dict().values()
            if tensor.is_floating_point()
            for number in torch.unique(tensor)
        }
    with contextlib.suppress(OSError, ValueError):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        parts["vocabulary"] = {number for number in (1, 2) if f"number {number}" in tokenizer.get_vocab()}
        parts["tokenizer"] = {tokenizer.model_max_length // 10}
    with contextlib.suppress(OSError):
        pictures = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
        parts["pictures"] = {pictures.size["shortest_edge"] // 4}
    return parts


def in_altclip(folder):
    """The same of what we load, which is everything."""
    found = AltCLIP.from_pretrained(folder)
    return {
        found.model.config.vision_config.image_size // 4,
        *(float(number) for leaf in jax.tree.leaves(found.params) for number in np.unique(leaf)),
        *(number for number in (1, 2) if found.processor.tokenizer.convert_tokens_to_ids(f"number {number}") != 3),
        found.processor.tokenizer.model_max_length // 10,
        found.processor.image_processor.size["shortest_edge"] // 4,
    }


def view(folder):
    """What transformers can see of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize(("before", "after"), [(10**9, 10**9), (10**5, 10**5)])
def test_a_kill_at_any_moment_leaves_no_mixture(before, after, tmp_path, interfere, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    old, new = made(1, tmp_path), made(2, tmp_path)
    whole = ("config", "weights", "vocabulary", "tokenizer", "pictures")
    views, ends = [], []
    for at in range(1, 999):
        folder = tmp_path / str(at)
        old.save_pretrained(folder, max_shard_bytes=before)
        with interfere(at) as stopped:
            new.save_pretrained(folder, max_shard_bytes=after)
        if view(folder) not in views:
            views.append(view(folder))
            assert len(set().union(*in_transformers(folder).values())) <= 1
        ends += in_altclip(folder)
        if not stopped:
            break
    assert len(ends) == at  # each time it was one of them
    assert ends == sorted(ends)
    assert len(views) > 10
    for number, place in (1, "1"), (2, str(at)):
        assert in_transformers(tmp_path / place) == {part: {number} for part in whole}

"""A small model with every parameter random, and a batch for it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIPConfig, AltCLIPModel, AltCLIPProcessor, CLIPConfig, CLIPModel
from altclip_jax.assets import PICTURES, default_checkpoint
from altclip_jax.training.config import RunConfig

TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "project_dim": 16,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
    "attention_dropout": 0.1,
}
ROWS = 16
TEACHER = Path(__file__).parents[2] / "recipes" / "emoji" / "teacher"  # whose processor the tiny CLIP has


@pytest.fixture(scope="session")
def model():
    return AltCLIPModel(AltCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))


@pytest.fixture(scope="session")
def params(model):
    """Every value random and activations of order one, so that rounding is that of float32 and no more."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if leaf.ndim == 1:
            noise = 0.2 * noise + (1 if path[-1].key == "scale" else 0)
        elif path[-1].key == "kernel":
            noise = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        return jax.numpy.asarray(noise, leaf.dtype)

    values = jax.tree_util.tree_map_with_path(value, model.param_shapes())
    return {**values, "logit_scale": jax.numpy.float32(2.5)}


@pytest.fixture(scope="session")
def batch():
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 60, (ROWS, 7)).astype(np.int32)
    ids[0, 4:] = 1
    return {
        "input_ids": ids,
        "attention_mask": (ids != 1).astype(np.int32),
        "pixel_values": rng.standard_normal((ROWS, 3, 12, 12), dtype=np.float32),
    }


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """A folder with a tiny student, a tiny CLIP, pictures with captions and parallel text."""
    folder = tmp_path_factory.mktemp("workshop")
    # without dropout, which takes most of the time of compilation; `forgetful` has it
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tokenizer = {"vocab_size": 8000, "max_position_embeddings": 66, **still}
    picture = {**VISION, "image_size": 32, "patch_size": 16, "attention_dropout": 0.0}
    student = AltCLIPModel(AltCLIPConfig(text_config={**TEXT, **tokenizer}, vision_config=picture, projection_dim=16))
    student.save_pretrained(folder / "student", student.init_params(jax.random.key(0)))
    text = {
        "vocab_size": 2048,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "eos_token_id": 2047,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={**picture, "num_hidden_layers": 1}, projection_dim=16))
    clip.save_pretrained(folder / "clip", clip.init_params(jax.random.key(1)))
    shutil.copytree(folder / "student", folder / "forgetful")
    config = student.config.to_dict()
    config["text_config"] |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "forgetful/config.json").write_text(json.dumps(config))
    for name, source in (("student", default_checkpoint()), ("forgetful", default_checkpoint()), ("clip", TEACHER)):
        AltCLIPProcessor.from_pretrained(source).save_pretrained(folder / name)
    captions = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
    with (folder / "pictures.jsonl").open("w", encoding="utf-8") as file:
        for thing, names in captions.items():
            paths = [str(PICTURES / f"{thing}_{design}.png") for design in ("noto", "fxemoji")]
            file.write(json.dumps({"image": paths, "captions": names}, ensure_ascii=False) + "\n")
    with (folder / "parallel.tsv").open("w", encoding="utf-8") as file:
        file.write("source\ttarget\tlanguage\n")
        for names in captions.values():
            file.writelines(f"{names['en']}\t{names[language]}\t{language}\n" for language in ("zh", "fr"))
    return folder


@pytest.fixture
def settings(workshop, tmp_path):
    """Returns a function (stage, **changes by dotted name) -> RunConfig of a short run in a folder of its own."""

    def make(stage="contrastive", **changes):
        values = {
            "stage": stage,
            "folder": str(tmp_path / "run"),
            "steps": 6,
            "batch_size": 16,
            "model": {"source": str(workshop / "student")},
            "data": {"max_length": 12, "train": [{"path": str(workshop / "pictures.jsonl")}]},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
            "checkpoints": {"every": 2, "keep_last": 2},
            "logging": {"every": 1},
        }
        if stage == "teacher":
            values["teacher"] = {"source": str(workshop / "clip"), "max_length": 12}
            values["data"]["train"] = [{"path": str(workshop / "parallel.tsv")}]
        for name, value in changes.items():
            *parents, last = name.split("__")
            node = values
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return RunConfig.from_values(values)

    return make

"""What training exports is loaded by transformers with equal outputs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from altclip_jax import AltCLIPModel, AltCLIPProcessor, CLIPModel
from altclip_jax.assets import PICTURES, default_checkpoint
from altclip_jax.training.config import RunConfig
from altclip_jax.training.loop import train

TEACHER = Path(__file__).parents[2] / "recipes" / "emoji" / "teacher"


@pytest.fixture
def run(tmp_path):
    names = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
    with (tmp_path / "pictures.jsonl").open("w", encoding="utf-8") as file:
        for thing, captions in names.items():
            entry = {"image": str(PICTURES / f"{thing}_noto.png"), "captions": captions}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def make(source, **model):
        values = {
            "stage": "contrastive",
            "folder": str(tmp_path / "run"),
            "steps": 3,
            "batch_size": 16,
            "model": {"source": str(source), **model},
            "data": {"max_length": 12, "train": [{"path": str(tmp_path / "pictures.jsonl")}]},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        }
        return train(RunConfig.from_values(values), quiet=True).exported

    return make


def compared(folder, ours_class, theirs_class):
    model, params = ours_class.from_pretrained(folder)
    reference, report = theirs_class.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    texts = ["red apple", "rocket"]
    batch = AltCLIPProcessor.from_pretrained(folder)(
        images=[PICTURES / "rocket_noto.png"], text=texts, padding="max_length", truncation=True, max_length=12
    )
    ours = jax.jit(model.apply)({"params": params}, **batch)
    with torch.inference_mode():
        theirs = reference.eval()(**{name: torch.tensor(values) for name, values in batch.items()})
    for name, tolerance in (("text_embeds", 5e-6), ("image_embeds", 5e-6), ("logits_per_image", 1e-4)):
        np.testing.assert_allclose(getattr(ours, name), theirs[name].numpy(), rtol=0, atol=tolerance, err_msg=name)
    return params


def test_a_trained_student_is_read_by_transformers_with_equal_outputs(run):
    folder = run(default_checkpoint())
    params = compared(folder, AltCLIPModel, transformers.AltCLIPModel)
    before = AltCLIPModel.from_pretrained(default_checkpoint())[1]
    kernels = [tree["text_model"]["layer_0"]["mlp"]["up"]["kernel"] for tree in (params, before)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = AltCLIPProcessor.from_pretrained(folder).tokenizer
    assert ours("a red apple")["input_ids"] == tokenizer("a red apple")["input_ids"]


def test_a_trained_clip_is_read_by_transformers_with_equal_outputs(run, tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 2048, "max_position_embeddings": 66, "eos_token_id": 2047},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    AltCLIPProcessor.from_pretrained(TEACHER).save_pretrained(tmp_path / "clip")
    everything = ["text_model", "vision_model", "text_projection", "visual_projection", "logit_scale"]
    folder = run(tmp_path / "clip", train=everything, dtype="bfloat16")
    params = compared(folder, CLIPModel, transformers.CLIPModel)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}  # masters of a bfloat16 run

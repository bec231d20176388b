"""Models from scratch, students that take a CLIP's image tower, and what does not fit together."""

import json
import shutil

import jax
import numpy as np
import pytest

from altclip_jax import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    cli,
    student,
)
from altclip_jax.assets import default_checkpoint
from altclip_jax.weights.convert import flatten

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
VISION = {**TOWER, "image_size": 16, "patch_size": 8, "hidden_act": "gelu"}
CLIP = CLIPConfig(
    text_config={**TOWER, "hidden_size": 24, "max_position_embeddings": 16}, vision_config=VISION, projection_dim=12
)
ALTCLIP = AltCLIPConfig(
    text_config={**TOWER, "vocab_size": 8000, "max_position_embeddings": 40, "project_dim": 24},
    vision_config=VISION,
    projection_dim=12,
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, clip_bpe):
    """A stage-0 CLIP from scratch."""
    folder = tmp_path_factory.mktemp("teacher")
    CLIP.save(folder / "config")
    made = student.start(folder / "clip", config=folder / "config", tokenizer=clip_bpe, seed=5)
    assert (made.model_type, made.taken) == ("clip", {})
    return folder / "clip"


def same(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    assert all(np.array_equal(np.asarray(left[path]), np.asarray(right[path])) for path in left)


def test_a_clip_from_scratch_is_ready_to_train(teacher):
    model, params = CLIPModel.from_pretrained(teacher)
    same(params, model.init_params(jax.random.key(5)))
    processor = AltCLIPProcessor.from_pretrained(teacher)
    assert type(processor.tokenizer) is CLIPTokenizer
    texts = ["a photo of a cat", "word " * 50]
    batch = processor(text=texts, images=np.zeros((20, 30, 3), np.uint8), padding="max_length", truncation=True)
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert batch["input_ids"][1, -1] == 49407
    out = model.apply({"params": params}, **batch)
    assert out.logits_per_text.shape == (2, 1)


def test_an_altclip_from_scratch_is_what_its_seed_says(tmp_path):
    ALTCLIP.save(tmp_path)
    made = student.start(tmp_path / "a", config=tmp_path / "config.json", tokenizer=default_checkpoint(), seed=1)
    student.start(tmp_path / "b", config=tmp_path, tokenizer=default_checkpoint(), seed=2)
    model, params = AltCLIPModel.from_pretrained(tmp_path / "a")
    same(params, model.init_params(jax.random.key(1)))
    assert made.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert len(made.initialised) == len(flatten(params))
    assert model.config.replace(extra={}) == ALTCLIP
    other = flatten(AltCLIPModel.from_pretrained(tmp_path / "b")[1])
    assert not np.array_equal(flatten(params)["text_projection/kernel"], other["text_projection/kernel"])


def test_a_new_text_tower_beside_the_teachers_image_tower(teacher, tmp_path):
    ALTCLIP.save(tmp_path)
    made = student.start(tmp_path / "s", config=tmp_path, clip=teacher, tokenizer=default_checkpoint(), seed=1)
    _, theirs = CLIPModel.from_pretrained(teacher)
    model, params = AltCLIPModel.from_pretrained(tmp_path / "s")
    for part in ("vision_model", "text_projection", "visual_projection"):
        same(params[part], theirs[part])
    same(params["text_model"], model.init_params(jax.random.key(1))["text_model"])
    assert all(path.startswith("text_model/") for path in made.initialised)
    pictures = AltCLIPProcessor.from_pretrained(tmp_path / "s").image_processor
    assert pictures == AltCLIPProcessor.from_pretrained(teacher).image_processor


def test_everything_that_does_not_fit_is_named_at_once(teacher, tmp_path):
    changed = ALTCLIP.replace(
        text_config=ALTCLIP.text_config.replace(project_dim=20, vocab_size=7000, pad_token_id=3),
        vision_config=ALTCLIP.vision_config.replace(hidden_size=32, hidden_act="quick_gelu", image_size=24),
        projection_dim=10,
    )
    changed.save(tmp_path)
    with pytest.raises(ValueError, match="cannot be made of these") as caught:
        student.start(tmp_path / "s", config=tmp_path, clip=teacher, tokenizer=default_checkpoint())
    for words in (
        "vision_config.hidden_size=32 and clip has hidden_size=16",
        "vision_config.hidden_act='quick_gelu' and clip has hidden_act='gelu'",
        "vision_config.image_size=24 and clip has image_size=16",
        "config.projection_dim=10 and clip has projection_dim=12",
        "text_config.project_dim=20 and the text tower of clip has hidden_size=24",
        "the tokenizer has 8000 ids and text_config.vocab_size=7000",
        "the tokenizer pads with 1 and text_config.pad_token_id=3",
        "makes pictures of 16*16 pixels and vision_config.image_size=24",
    ):
        assert words in str(caught.value)
    assert str(caught.value).count("\n  - ") == 8
    assert not (tmp_path / "s").exists()


def test_a_clips_tokenizer_must_end_texts_where_the_tower_reads_them(clip_bpe, teacher, tmp_path):
    for eos, words in ((7, "ends texts with id 49407 and text_config.eos_token_id=7"), (2, None)):
        CLIP.replace(text_config=CLIP.text_config.replace(eos_token_id=eos)).save(tmp_path)
        if words is None:
            student.start(tmp_path / "clip", config=tmp_path, tokenizer=clip_bpe)
            continue
        with pytest.raises(ValueError, match=words):
            student.start(tmp_path / "clip", config=tmp_path, tokenizer=clip_bpe)
    shutil.copytree(clip_bpe, tmp_path / "more")
    (tmp_path / "more" / "added_tokens.json").write_text('{"<cat>": 49408}')
    with pytest.raises(ValueError, match="reads them off at their highest id"):
        student.start(tmp_path / "clip", config=tmp_path, tokenizer=tmp_path / "more")
    with pytest.raises(ValueError, match="text and clip are for an AltCLIP"):
        student.start(tmp_path / "clip", config=tmp_path, clip=teacher, tokenizer=clip_bpe)


def test_what_is_missing_is_said(teacher, tmp_path):
    ALTCLIP.save(tmp_path)
    with pytest.raises(ValueError, match="Without a text checkpoint the model must be described"):
        student.start(tmp_path / "s", clip=teacher)
    with pytest.raises(ValueError, match="There is no tokenizer"):
        student.start(tmp_path / "s", config=tmp_path, clip=teacher)
    with pytest.raises(FileNotFoundError, match=r"neither sentencepiece.bpe.model nor tokenizer.json"):
        student.start(tmp_path / "s", config=tmp_path, tokenizer=tmp_path)
    with pytest.raises(ValueError, match="expects model_type 'xlm-roberta' and found 'clip'"):
        student.start(tmp_path / "s", text=teacher, clip=teacher)
    for option in ("clip", "tokenizer"):
        with pytest.raises(ValueError, match=f"is where {option} is read from"):
            student.start(teacher, **{"config": tmp_path, "tokenizer": default_checkpoint(), option: teacher})
    with pytest.raises(ValueError, match="is where config is read from"):
        student.start(tmp_path, config=tmp_path / "config.json", tokenizer=default_checkpoint())


def test_the_command_lists_what_it_initialised(capsys, teacher, tmp_path):
    ALTCLIP.save(tmp_path)
    options = ["--config", str(tmp_path), "--clip", str(teacher), "--tokenizer", str(default_checkpoint())]
    assert cli.main(["init", str(tmp_path / "s"), *options, "--seed", "4"]) == 0
    out = capsys.readouterr().out
    assert f"26 tensors from {teacher}" in out
    assert "text_model/transformation/kernel" in out
    assert cli.main(["init", str(tmp_path / "t"), *options, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["taken"] == {str(teacher): 26}
    assert "text_model/final_norm/scale" in made["initialised"]
    assert cli.main(["init", str(tmp_path / "u"), "--config", str(tmp_path)]) == 1
    assert "There is no tokenizer" in capsys.readouterr().err


def test_info_and_convert_know_a_clip(capsys, teacher, tmp_path):
    assert cli.main(["info", str(teacher), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["part"], found["config"]["model_type"]) == ("full", "clip")
    assert cli.main(["convert", str(teacher), str(tmp_path / "text"), "--part", "text", "--dtype", "bfloat16"]) == 0
    assert "text_model " in capsys.readouterr().out
    assert (tmp_path / "text" / "vocab.json").is_file()
    assert cli.main(["info", str(tmp_path / "text"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["dtypes"] == ["bfloat16"]

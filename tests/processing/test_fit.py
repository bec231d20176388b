"""A processor that is not that of the model is refused when they are joined; none that is published is."""

import json
import shutil
from pathlib import Path

import pytest

from altclip_jax import (
    AltCLIP,
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    AltCLIPTextConfig,
    AltCLIPTokenizer,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTokenizer,
)
from altclip_jax.assets import default_checkpoint
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.processing.processor import check_processor, picture_problems, tokenizer_problems

ROOT = Path(__file__).parents[2]
DEFAULT = default_checkpoint()
EMOJI = ROOT / "recipes" / "emoji"
PICTURES = AltCLIPImageProcessor()


@pytest.fixture(scope="module")
def xlmr():
    """The tokenizer of all published AltCLIPs."""
    return AltCLIPTokenizer.from_pretrained(ROOT / "tests" / "data" / "xlmr")


@pytest.fixture(scope="module")
def clip_tokenizer(clip_bpe):
    return CLIPTokenizer.from_pretrained(clip_bpe)


@pytest.fixture
def copy(tmp_path):
    """Returns a function that copies a checkpoint with changes of {file: {key or "part.key": value}}."""

    def changed(files, source=DEFAULT):
        folder = tmp_path / "model"
        shutil.copytree(source, folder)
        for name, changes in files.items():
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            for key, value in changes.items():
                *parts, last = key.split(".")
                inner = values
                for part in parts:
                    inner = inner[part]
                inner[last] = value
            (folder / name).write_text(json.dumps(values), encoding="utf-8")
        return folder

    return changed


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": {"text_config.pad_token_id": 5}}, "pads with 1 and text_config.pad_token_id=5"),
        ({"tokenizer_config.json": {"pad_token": "<s>"}}, "pads with 0 and text_config.pad_token_id=1"),
        ({"config.json": {"text_config.bos_token_id": 5}}, "begins texts with id 0 and text_config.bos_token_id=5"),
        ({"config.json": {"text_config.eos_token_id": 5}}, "ends texts with id 2 and text_config.eos_token_id=5"),
        ({"config.json": {"text_config.eos_token_id": [5, 6]}}, r"ends texts with id 2 and .*eos_token_id=\(5, 6\)"),
        ({"tokenizer.json": {"post_processor": None}}, "begins texts with id None and text_config.bos_token_id=0"),
        (
            {"tokenizer_config.json": {"additional_special_tokens": ["<one>", "<two>"]}},
            "has 8002 ids and text_config.vocab_size=8000 rows",
        ),
        ({"preprocessor_config.json": {"crop_size": 48}}, r"48\*48 pixels and vision_config.image_size=32"),
        (
            {"preprocessor_config.json": {"do_center_crop": False, "size": {"height": 32, "width": 30}}},
            r"32\*30 pixels",
        ),
        ({"preprocessor_config.json": {"do_center_crop": False, "size": 40}}, "a shortest edge of 40 and"),
        ({"config.json": {"vision_config.num_channels": 1}}, "3 channels and vision_config.num_channels=1"),
    ],
)
def test_what_does_not_fit_is_named(copy, files, words):
    folder = copy(files)
    with pytest.raises(ValueError, match=rf"The processor of .*model does not fit the model:\n  - .*{words}"):
        check_processor(AltCLIPConfig.from_json(folder), AltCLIPProcessor.from_pretrained(folder), str(folder))


def test_altclip_refuses_what_does_not_fit_by_whatever_way_it_is_made(copy):
    folder = copy({"config.json": {"text_config.pad_token_id": 5}, "preprocessor_config.json": {"crop_size": 48}})
    model, params = AltCLIPModel.from_pretrained(folder)
    for make in (
        lambda: AltCLIP.from_pretrained(folder),
        lambda: AltCLIP(model, params, AltCLIPProcessor.from_pretrained(folder), name=str(folder)),
    ):
        with pytest.raises(ValueError, match="does not fit the model") as caught:
            make()
        assert str(caught.value).count("\n  - ") == 2
        assert f"The processor of {folder}" in str(caught.value)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": {"text_config.bos_token_id": None, "text_config.eos_token_id": None}},
        {"config.json": {"text_config.eos_token_id": [2, 3]}},
        {"preprocessor_config.json": {"do_center_crop": False, "size": {"height": 32, "width": 32}}},
        {"preprocessor_config.json": {"do_center_crop": False, "size": 32}},  # square pictures fit
        {"preprocessor_config.json": {"do_center_crop": False, "do_resize": False}},  # prepared ones do
        {"tokenizer_config.json": {"model_max_length": 1_000_000}},  # texts are cut to the position table
        {"tokenizer_config.json": {"padding_side": "left"}},
    ],
)
def test_what_may_fit_is_taken(copy, files):
    folder = copy(files)
    check_processor(AltCLIPConfig.from_json(folder), AltCLIPProcessor.from_pretrained(folder), str(folder))


FLAGAI = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {"model_type": "xlm-roberta", "vocab_size": 250002, "max_position_embeddings": 514},
    "text_config_dict": {"hidden_size": 768, "num_hidden_layers": 12},
    "vision_config": {"model_type": "clip_vision_model", "patch_size": 14},
}
RESET = {  # as BAAI/AltCLIP-m9 has it: the second copy resets every special id to its default
    "model_type": "altclip",
    "text_config": {"vocab_size": 250002, "bos_token_id": 5, "pad_token_id": 7, "eos_token_id": 9},
    "text_config_dict": {"hidden_size": 1024, "num_attention_heads": 16},
    "vision_config": {},
}


@pytest.mark.parametrize(
    "config",
    [
        AltCLIPConfig(),
        AltCLIPConfig.altclip(),
        AltCLIPConfig.altclip_m9(),
        AltCLIPConfig.altclip_m18(),
        AltCLIPConfig.from_json(ROOT / "recipes" / "altclip" / "model.json"),
        AltCLIPConfig.from_dict(FLAGAI),
        AltCLIPConfig.from_dict(RESET),
        AltCLIPConfig(text_config={"vocab_size": 250112}),  # rows filled up to a multiple
    ],
)
@pytest.mark.parametrize(
    "pictures",
    [
        PICTURES,
        AltCLIPImageProcessor.from_dict({"size": 224, "crop_size": 224, "do_resize": True}),  # BAAI/AltCLIP-m9
    ],
)
def test_published_altclips_fit_their_processors(xlmr, config, pictures):
    check_processor(config, AltCLIPProcessor(pictures, xlmr), "it")


@pytest.mark.parametrize(
    "special",
    [
        {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},  # openai/clip-vit-*, before transformers 4.31
        {"pad_token_id": 1, "bos_token_id": 49406, "eos_token_id": 49407},
        {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 49407},
        {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2},
    ],
)
@pytest.mark.parametrize("rows", [49408, 49600])
def test_published_clips_fit_their_processors(clip_tokenizer, special, rows):
    config = CLIPConfig(text_config={**special, "vocab_size": rows})
    check_processor(config, AltCLIPProcessor(PICTURES, clip_tokenizer), "it")


@pytest.mark.parametrize("folder", [DEFAULT, EMOJI / "teacher"])
def test_what_this_library_carries_fits(folder):
    config = (CLIPConfig if folder.name == "teacher" else AltCLIPConfig).from_json(folder)
    check_processor(config, AltCLIPProcessor.from_pretrained(folder), str(folder))
    for name in ("student", "teacher"):
        kind = CLIPConfig if name == "teacher" else AltCLIPConfig
        made = kind.from_json(EMOJI / "full" / f"{name}.json")
        if type(made) is type(config):
            check_processor(made, AltCLIPProcessor.from_pretrained(folder), name)


def test_the_tokenizers_of_the_two_families_are_told_apart(xlmr, clip_tokenizer):
    for eos, words in ((49407, "text_config.eos_token_id=49407"), (2, "reads them off at their highest id")):
        config = CLIPConfig(text_config={"eos_token_id": eos, "vocab_size": 250002}).text_config
        (problem,) = tokenizer_problems(config, xlmr)
        assert "ends texts with id 2" in problem
        assert words in problem
    assert len(list(tokenizer_problems(AltCLIPTextConfig(), clip_tokenizer))) == 3


def test_a_tokenizer_with_room_for_no_text_is_told():
    tokenizer = AltCLIPTokenizer.from_pretrained(ROOT / "tests" / "data" / "xlmr", model_max_length=1)
    (problem,) = tokenizer_problems(AltCLIPTextConfig(), tokenizer)
    assert "model_max_length=1 and puts 2 ids around every text" in problem


def test_an_added_token_beyond_a_gap_counts(tmp_path):
    """Where the ids are the slow tokenizer's; the tokenizers library gives an added token the next one."""
    shutil.copy(ROOT / "tests" / "data" / "xlmr" / "sentencepiece.bpe.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<cat>": 300000}', encoding="utf-8")
    tokenizer = AltCLIPTokenizer.from_pretrained(tmp_path)
    assert (len(tokenizer), tokenizer.highest_id) == (250003, 300000)
    (problem,) = tokenizer_problems(AltCLIPTextConfig(), tokenizer)
    assert "has 300001 ids and text_config.vocab_size=250002" in problem


def test_pictures_of_other_channels_are_taken_where_they_are_not_normalised():
    config = AltCLIPVisionConfig(num_channels=1)
    assert len(list(picture_problems(config, PICTURES))) == 1
    assert not list(picture_problems(config, PICTURES.replace(do_normalize=False)))

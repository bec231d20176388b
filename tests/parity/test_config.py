"""Configurations written here and read by transformers 4.56.2, and the other way round."""

import copy

import pytest
import transformers

from altclip_jax import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    XLMRobertaConfig,
)

PAIRS = [
    (AltCLIPConfig, transformers.AltCLIPConfig),
    (AltCLIPTextConfig, transformers.AltCLIPTextConfig),
    (AltCLIPVisionConfig, transformers.AltCLIPVisionConfig),
    (CLIPConfig, transformers.CLIPConfig),
    (CLIPTextConfig, transformers.CLIPTextConfig),
    (CLIPVisionConfig, transformers.CLIPVisionConfig),
    (XLMRobertaConfig, transformers.XLMRobertaConfig),
]


def values(config):
    """What a reference configuration says, without where it was read from."""
    found = config.to_dict()
    for part in (found, found.get("text_config", {}), found.get("vision_config", {})):
        part.pop("_name_or_path", None)
        part.pop("dtype", None)
    return found


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_defaults_are_those_of_the_reference(ours, theirs, tmp_path):
    ours().save(tmp_path)
    assert values(theirs.from_pretrained(tmp_path)) == values(theirs())


def test_what_the_reference_wrote_is_read_and_written_back_equal(tmp_path):
    reference = transformers.AltCLIPConfig(
        text_config={"hidden_size": 64, "num_attention_heads": 4, "eos_token_id": [2, 3], "num_beams": 4},
        vision_config={"image_size": 30, "patch_size": 5, "output_hidden_states": True},
        projection_dim=12,
        a_key_of_mine={"nested": [1]},
    )
    reference.save_pretrained(tmp_path / "theirs")
    AltCLIPConfig.from_json(tmp_path / "theirs").save(tmp_path / "ours")
    assert values(transformers.AltCLIPConfig.from_pretrained(tmp_path / "ours")) == values(reference)


@pytest.mark.parametrize(("ours", "theirs"), [PAIRS[0], PAIRS[3]])
def test_the_legacy_copies_mean_what_they_mean_to_the_reference(ours, theirs, tmp_path):
    files = {
        "text_config": {
            "hidden_size": 64,
            "hidden_dropout_prob": 0.0,
            "num_beams": 7,
            "eos_token_id": 2,
            "pooler_fn": "cls",
        },
        "text_config_dict": {"hidden_size": 128, "num_attention_heads": 8},
        "vision_config": {"hidden_size": 48, "image_size": 60},
        "vision_config_dict": {"hidden_size": 96},
    }
    ours.from_dict(files).save(tmp_path)
    assert values(theirs.from_pretrained(tmp_path)) == values(theirs(**copy.deepcopy(files)))

"""Every published layout of config.json, and what is refused."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIPConfig, AltCLIPModel, AltCLIPTextConfig, AltCLIPVisionConfig, CLIPConfig

# The layout of BAAI/AltCLIP-m9: every key of the base class per tower, dropouts of 0, and the legacy second copies.
LEGACY = {
    "architectures": ["AltCLIPModel"],
    "direct_kd": False,
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "altclip",
    "num_layers": 3,
    "projection_dim": 768,
    "text_config": {
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "bad_words_ids": None,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_size": 1024,
        "is_decoder": False,
        "max_length": 20,
        "max_position_embeddings": 514,
        "model_type": "altclip_text_model",
        "num_beams": 5,
        "pooler_fn": "cls",
        "pruned_heads": {},
        "torch_dtype": None,
        "vocab_size": 250002,
    },
    "text_config_dict": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
    },
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": {
        "dropout": 0.0,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "model_type": "altclip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
    "vision_config_dict": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}


def test_legacy_copy_wins_and_resets_what_it_does_not_name():
    config = AltCLIPConfig.from_dict(LEGACY)
    assert config.text_config.hidden_dropout_prob == 0.1
    assert "num_beams" not in config.text_config.extra
    assert config.text_config.extra["pooler_fn"] == "cls"
    assert config.extra["num_layers"] == 3
    assert "text_config_dict" not in config.to_dict()


def test_published_files_describe_the_named_presets():
    config, preset = AltCLIPConfig.from_dict(LEGACY), AltCLIPConfig.altclip_m9()
    strip = lambda part: dataclasses.replace(part, extra={})  # noqa: E731
    assert strip(config.text_config) == preset.text_config
    assert strip(config.vision_config) == preset.vision_config
    assert AltCLIPConfig.altclip_m18().text_config.project_dim == 1024


@pytest.mark.parametrize(
    ("config", "text", "vision", "total"),
    [
        (AltCLIPConfig.altclip(), 559_630_080, 303_179_776, 864_186_113),
        (AltCLIPConfig.altclip_m9(), 559_630_080, 303_179_776, 864_186_113),
        (AltCLIPConfig.altclip_m18(), 559_892_480, 630_766_080, 1_193_017_857),
        (AltCLIPConfig(), None, None, 648_265_729),
    ],
)
def test_parameter_counts_of_the_presets(config, text, vision, total):
    shapes = AltCLIPModel(config).param_shapes()
    count = lambda tree: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count(shapes) == total
    if text is not None:
        assert (count(shapes["text_model"]), count(shapes["vision_model"])) == (text, vision)


def test_tower_classes_read_a_full_configuration():
    assert AltCLIPTextConfig.from_dict(LEGACY).hidden_dropout_prob == 0.1
    assert AltCLIPVisionConfig.from_dict(LEGACY).patch_size == 14


def test_flagai_files_are_read_and_their_second_copy_is_not_believed():
    flagai = {
        **LEGACY,
        "model_type": "clip",
        "text_config": {**LEGACY["text_config"], "model_type": "xlm-roberta", "intermediate_size": 4096},
        "text_config_dict": {"hidden_size": 768, "num_hidden_layers": 12},
        "vision_config": {**LEGACY["vision_config"], "model_type": "clip_vision_model"},
    }
    config = AltCLIPConfig.from_dict(flagai)
    assert config.text_config.hidden_size == 1024
    assert config.to_dict()["model_type"] == "altclip"


def test_defaults_of_absent_ids_and_a_list_of_end_tokens():
    assert AltCLIPTextConfig.from_dict({}).pad_token_id == 1
    config = AltCLIPTextConfig.from_dict({"eos_token_id": [2, 5]})
    assert config.eos_token_id == (2, 5)
    assert config.to_dict()["eos_token_id"] == [2, 5]
    hash(config)


def test_saved_and_read_back_equal(tmp_path):
    config = AltCLIPConfig.from_dict({**LEGACY, "output_attentions": True, "mine": {"kept": [1, 2]}})
    config.save(tmp_path)
    assert AltCLIPConfig.from_json(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["mine"] == {"kept": [1, 2]}


def test_from_text_vision_configs_joins_the_towers():
    text, vision = AltCLIPTextConfig(hidden_size=32), AltCLIPVisionConfig(hidden_size=48)
    config = AltCLIPConfig.from_text_vision_configs(text, vision, projection_dim=9)
    assert (config.text_config, config.vision_config, config.projection_dim) == (text, vision, 9)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (AltCLIPTextConfig, {"hidden_size": 30}, "divisible by num_attention_heads=16"),
        (AltCLIPTextConfig, {"vocab_size": 0, "project_dim": -1}, "vocab_size=0.*project_dim=-1"),
        (AltCLIPTextConfig, {"hidden_act": "mish"}, "gelu_new"),
        (AltCLIPTextConfig, {"hidden_act": len}, "callable"),
        (AltCLIPTextConfig, {"pad_token_id": None}, "pad_token_id=None"),
        (AltCLIPTextConfig, {"hidden_dropout_prob": 1.5}, r"in \[0, 1\)"),
        (AltCLIPTextConfig, {"position_embedding_type": "rotary"}, "relative_key_query"),
        (AltCLIPTextConfig, {"layer_norm_eps": 0}, "positive number"),
        (AltCLIPVisionConfig, {"patch_size": 300}, "must not exceed image_size"),
        (AltCLIPVisionConfig, {"num_channels": True}, "num_channels=True"),
        (AltCLIPConfig, {"projection_dim": 0}, "projection_dim=0"),
        (AltCLIPTextConfig, {"bos_token_id": [0]}, r"bos_token_id=\[0\] must be a single value"),
    ],
)
def test_impossible_values_are_refused_with_a_sentence(kind, fields, words):
    with pytest.raises(ValueError, match=words):
        kind(**fields)


@pytest.mark.parametrize(
    "build",
    [
        lambda: AltCLIPTextConfig(hiden_size=7),
        lambda: AltCLIPTextConfig().replace(hiden_size=7),
        lambda: AltCLIPTextConfig.from_dict({}, hiden_size=7),
        lambda: AltCLIPConfig(text_config={"hiden_size": 7}),
        lambda: AltCLIPConfig.from_text_vision_configs({"hiden_size": 7}, {}),
        lambda: AltCLIPConfig.from_dict({"model_type": "altclip"}, text_config={"hiden_size": 7}),
        lambda: AltCLIPConfig().replace(text_config={"hiden_size": 7}),
    ],
)
def test_a_misspelled_setting_is_refused_where_it_is_given_by_hand(build):
    with pytest.raises(TypeError, match="AltCLIPTextConfig has no setting 'hiden_size': did you mean 'hidden_size'"):
        build()


def test_what_another_version_knows_is_kept_and_a_file_may_have_any_key(tmp_path):
    given = {"sep_token_id": 2, "type_vocab_size": 1, "pooler_fn": "cls"}
    assert CLIPConfig(text_config=given).text_config.extra == given
    values = {"text_config": {"hiden_size": 7}, "projection_dims": 3, "model_type": "altclip"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for config in (AltCLIPConfig.from_json(tmp_path), AltCLIPConfig.from_dict(values)):
        assert config.text_config.extra == {"hiden_size": 7}
        assert config.extra == {"projection_dims": 3}
        assert AltCLIPConfig.from_dict(config.to_dict()) == config == pickle.loads(pickle.dumps(config))


@pytest.mark.parametrize("key", ["is_decoder", "add_cross_attention"])
def test_another_architecture_is_refused(key):
    with pytest.raises(ValueError, match=key):
        AltCLIPTextConfig.from_dict({key: True})


def test_the_configuration_of_another_model_is_refused():
    with pytest.raises(ValueError, match="another model"):
        AltCLIPConfig.from_dict({"model_type": "clip", "text_config": {"model_type": "clip_text_model"}})
    with pytest.raises(ValueError, match="another model"):
        AltCLIPTextConfig.from_dict({"model_type": "bert"})


def test_files_that_are_no_configuration_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        AltCLIPConfig.from_json(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        AltCLIPConfig.from_json(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected an object"):
        AltCLIPConfig.from_json(tmp_path)

"""A checkpoint's folder after a save holds what was saved and nothing that a reader would prefer to it."""

import functools
import json
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from altclip_jax import (
    AltCLIP,
    AltCLIPConfig,
    AltCLIPImageProcessor,
    AltCLIPModel,
    AltCLIPProcessor,
    AltCLIPTokenizer,
    CheckpointError,
    load_tokenizer,
)
from altclip_jax.assets import default_checkpoint
from altclip_jax.checkpoints import convert, describe
from altclip_jax.files.hub import find
from altclip_jax.weights.convert import flatten
from altclip_jax.weights.folder import save_orbax

DEFAULT = default_checkpoint()
XLMR = Path(__file__).parents[1] / "data" / "xlmr"
SIZES = {"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 4}


def made(layers, tokenizer):
    """A tiny model, whole; `layers` tells it and its configuration apart."""
    config = AltCLIPConfig(
        text_config={
            **SIZES,
            "num_hidden_layers": layers,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 20,
            "project_dim": 4,
        },
        vision_config={**SIZES, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4},
        projection_dim=4,
    )
    model, rng = AltCLIPModel(config), np.random.default_rng(layers)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), model.param_shapes())
    pictures = AltCLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return AltCLIP(model, params, AltCLIPProcessor(pictures, tokenizer))


@pytest.fixture(scope="module")
def first():
    """Its tokenizer has a sentencepiece.bpe.model."""
    return made(1, AltCLIPTokenizer.from_pretrained(XLMR))


@pytest.fixture(scope="module")
def second():
    """Its tokenizer has a tokenizer.json."""
    return made(2, AltCLIPTokenizer.from_pretrained(DEFAULT))


def holds(folder, saved):
    _, params = AltCLIPModel.from_pretrained(folder)
    left, right = flatten(params), flatten(saved.params)
    return left.keys() == right.keys() and all(
        np.array_equal(np.asarray(left[path]), np.asarray(right[path])) for path in left
    )


def ids(whole):
    return whole.processor.tokenizer("a red bus")["input_ids"]


def listed(folder):
    return sorted(path.name for path in Path(folder).iterdir())


FORMS = {
    "one file": lambda saved, folder: saved.model.save_pretrained(folder, saved.params),
    "shards": lambda saved, folder: saved.model.save_pretrained(folder, saved.params, max_shard_bytes=3000),
    "orbax": lambda saved, folder: save_orbax(saved.model, folder, saved.params),
}


@pytest.mark.parametrize("before", FORMS)
@pytest.mark.parametrize("after", FORMS)
def test_what_is_saved_last_is_loaded(before, after, first, second, tmp_path):
    FORMS[after](second, tmp_path / "alone")
    FORMS[before](first, tmp_path / "folder")
    FORMS[after](second, tmp_path / "folder")
    assert holds(tmp_path / "folder", second)
    assert listed(tmp_path / "folder") == listed(tmp_path / "alone")


def test_weights_of_torch_are_replaced_and_nothing_of_the_user(first, second, tmp_path):
    stale = ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin")
    stale += (".model-00001-of-00002.safetensors.0123abcd.tmp", ".model.safetensors.0123abcd.old")  # killed in 0.1.0
    kept = (
        ".notes.bin.0123abcd.tmp",
        "model-best.safetensors",
        "model-00001-of-00009.safetensors",
        "notes.bin",
        "pytorch_model.bin.backup",
    )
    for name in (*stale, *kept):
        (tmp_path / name).write_text("{}")
    (tmp_path / stale[0]).write_text(json.dumps({"weight_map": {"a": stale[1], "b": "notes.bin"}}))
    FORMS["orbax"](second, tmp_path)
    assert holds(tmp_path, second)
    assert listed(tmp_path) == sorted(["config.json", "orbax_params", *kept])


def test_two_forms_that_nobody_saved_together_are_refused(first, second, tmp_path):
    FORMS["orbax"](first, tmp_path)
    FORMS["one file"](second, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path)
    for load in (AltCLIPModel.from_pretrained, describe):
        with pytest.raises(
            CheckpointError, match=r"holds orbax_params and model\.safetensors, which were not saved to"
        ):
            load(tmp_path)


def test_a_repository_with_both_of_the_hubs_forms_loads_the_safetensors(first, tmp_path):
    FORMS["one file"](first, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"of the same weights, or not: nobody reads it")
    assert holds(tmp_path, first)


def test_the_tokenizer_that_was_saved_is_loaded(tmp_path):
    before, after = AltCLIPTokenizer.from_pretrained(XLMR), AltCLIPProcessor.from_pretrained(DEFAULT).tokenizer
    assert before("a red bus")["input_ids"] != after("a red bus")["input_ids"]
    before.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("of the user")
    after.save_pretrained(tmp_path)
    assert AltCLIPTokenizer.from_pretrained(tmp_path)("a red bus") == after("a red bus")
    assert listed(tmp_path) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    before.save_pretrained(tmp_path)
    assert AltCLIPTokenizer.from_pretrained(tmp_path)("a red bus") == before("a red bus")


def test_a_whole_model_replaces_a_whole_model(first, second, tmp_path):
    first.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "processor_config.json").write_text("{}")  # of transformers 5
    second.save_pretrained(tmp_path / "model", dtype="bfloat16", max_shard_bytes=3000)
    second.save_pretrained(tmp_path / "model")
    assert holds(tmp_path / "model", second)
    assert ids(AltCLIP.from_pretrained(tmp_path / "model")) == ids(second)
    convert(tmp_path / "model", tmp_path / "converted")
    assert listed(tmp_path / "converted") == listed(tmp_path / "model")
    assert not {"processor_config.json", "sentencepiece.bpe.model"} & set(listed(tmp_path / "model"))


def test_a_conversion_that_is_not_verified_changes_nothing(first, second, tmp_path, monkeypatch):
    for saved, name in ((first, "source"), (second, "target")):
        FORMS["one file"](saved, tmp_path / name)

    def fail(*_):
        raise CheckpointError("what was read back differs")

    monkeypatch.setattr("altclip_jax.checkpoints._verify", fail)
    before = listed(tmp_path / "target")
    with pytest.raises(CheckpointError, match="what was read back differs"):
        convert(tmp_path / "source", tmp_path / "target")
    assert holds(tmp_path / "target", second)
    assert listed(tmp_path / "target") == before


def test_of_four_threads_one_wins_whole_and_readers_see_one(first, second, tmp_path):
    failures, done = [], threading.Event()

    def attempt(function):
        def run():
            try:
                function()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def load():
        while not done.is_set():
            found = AltCLIP.from_pretrained(tmp_path)
            layers = found.model.config.text_config.num_hidden_layers
            expected = {1: first, 2: second}[layers]
            assert sum(name.startswith("layer_") for name in found.params["text_model"]) == layers
            assert ids(found) == ids(expected)

    def save(whole):
        for _ in range(4):
            whole.save_pretrained(tmp_path)

    first.save_pretrained(tmp_path)
    reader = attempt(load)
    savers = [attempt(functools.partial(save, whole)) for whole in (first, second, first, second)]
    for thread in savers:
        thread.join()
    done.set()
    reader.join()
    assert failures == []
    left = AltCLIP.from_pretrained(tmp_path)
    assert holds(tmp_path, first) if ids(left) == ids(first) else holds(tmp_path, second)
    assert not any(name.startswith(".") for name in listed(tmp_path))


def test_a_killed_save_is_undone_by_whoever_opens_the_folder(first, second, tmp_path, interfere):
    """Also by those that look for one file of it."""
    openings = [
        lambda folder: AltCLIPConfig.from_json(folder).text_config.num_hidden_layers,
        lambda folder: describe(folder).config["text_config"]["num_hidden_layers"],
        lambda folder: find(str(folder)).folder.joinpath("config.json").is_file(),
        lambda folder: len(AltCLIPTokenizer.from_pretrained(folder)) == 250002,
        lambda folder: len(load_tokenizer(folder)) == 250002,
        lambda folder: AltCLIPImageProcessor.from_pretrained(folder).size["shortest_edge"] == 8,
        lambda folder: AltCLIPProcessor.from_pretrained(folder).tokenizer.pad_token_id,
    ]
    for number, opening in enumerate(openings):
        folder = tmp_path / str(number)
        first.save_pretrained(folder)
        for at in range(1, 999):
            with interfere(at):
                second.save_pretrained(folder)
            if not any((folder / name).exists() for name in ("config.json", "preprocessor_config.json")):
                break
        assert opening(folder) == 1
        assert holds(folder, first)

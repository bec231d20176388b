"""A model is quantized, asked, and made float again by the command; accuracy is within what is promised."""

import json
from pathlib import Path

import numpy as np
import pytest

from altclip_jax import AltCLIP, cli
from altclip_jax.assets import PICTURES, default_checkpoint
from altclip_jax.weights.convert import flatten
from altclip_jax.weights.readers import open_checkpoint

ROOT = Path(__file__).parents[1]
DEFAULT = default_checkpoint()
HELD_OUT = ROOT / "recipes" / "emoji" / "data" / "eval_held_out-twemoji-00000.tar"


def run(capsys, *words):
    code = cli.main(list(map(str, words)))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def float_model():
    return AltCLIP.from_pretrained()


@pytest.fixture(scope="module", params=["int8", "int4"])
def converted(request, tmp_path_factory):
    """(scheme, folder) of the embedded model."""
    folder = tmp_path_factory.mktemp(request.param) / "small"
    assert cli.main(["convert", str(DEFAULT), str(folder), "--quantize", request.param]) == 0
    return request.param, folder


def test_a_converted_model_answers_the_same_questions(converted, capsys):
    scheme, folder = converted
    _, out, _ = run(capsys, "info", folder)
    assert f"{scheme} tensors" in out
    assert ("in groups of" in out) == (scheme == "int4")
    picture = PICTURES / "cat_noto.png"
    code, out, err = run(capsys, "classify", picture, "--labels", "cat", "rocket", "火箭", "--model", folder, "--json")
    assert code == 0, err
    assert max(json.loads(out)[0]["probabilities"].items(), key=lambda item: item[1])[0] == "cat"


def test_accuracy_and_bytes_are_within_the_targets(converted, float_model, capsys):
    scheme, folder = converted
    clip = AltCLIP.from_pretrained(folder)
    pictures = sorted(PICTURES.glob("*.png"))
    texts = ["cat", "red apple", "火箭", "ракета", "a banana"]
    for found, wanted in (
        (clip.encode_images(pictures), float_model.encode_images(pictures)),
        (clip.encode_text(texts), float_model.encode_text(texts)),
    ):
        assert (found * wanted).sum(axis=1).mean() >= {"int8": 0.9995, "int4": 0.9}[scheme]
    floats = 4 * sum(leaf.size for leaf in flatten(float_model.params).values())
    size = (folder / "model.safetensors").stat().st_size
    assert size <= {"int8": 0.30, "int4": 0.25}[scheme] * floats  # int4 of a small one: tables are int8
    accuracy = [told_apart(model, capsys) for model in (DEFAULT, folder)]
    assert abs(accuracy[0] - accuracy[1]) <= {"int8": 0.005, "int4": 0.03}[scheme]


def told_apart(model, capsys):
    """The share of 190 pictures that are told by their names, over eleven languages."""
    code, out, err = run(capsys, "evaluate", "retrieval", HELD_OUT, "--model", model, "--json")
    assert code == 0, err
    return json.loads(out)["mean"]["image_to_text"]["1"]


def test_made_float_again_it_is_read_everywhere(converted, tmp_path, capsys):
    _, folder = converted
    code, out, err = run(capsys, "convert", folder, tmp_path / "float", "--dequantize", "--dtype", "float32")
    assert code == 0, err
    assert "what quantization took from the original stays lost" in out
    again = AltCLIP.from_pretrained(tmp_path / "float")
    small = AltCLIP.from_pretrained(folder, dtype="float32")
    np.testing.assert_allclose(again.encode_text(["cat"]), small.encode_text(["cat"]), atol=1e-5)
    with open_checkpoint(tmp_path / "float") as found, open_checkpoint(DEFAULT) as original:
        assert {name: info.shape for name, info in found.infos.items()} == {
            name: info.shape for name, info in original.infos.items()
        }


def test_quantized_weights_go_into_every_form_as_they_are(converted, tmp_path, capsys):
    scheme, folder = converted
    for number, options in enumerate((["--form", "orbax"], ["--part", "text"], ["--dtype", "bfloat16"])):
        code, out, err = run(capsys, "convert", folder, tmp_path / str(number), *options, "--json")
        assert code == 0, err
        assert scheme in json.loads(out)["quantization"]["tensors"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quantize", "int4", "--group-size", "100"], "groups of 100 do not divide the input axis of"),
        (["--quantize", "int8", "--group-size", "64"], "group_size=64 is for int4"),
        (["--group-size", "64"], "--group-size 64 is for --quantize int4"),
        (["--dequantize"], "cannot be dequantized"),
    ],
)
def test_mistakes_are_sentences(options, words, tmp_path, capsys):
    code, _, err = run(capsys, "convert", DEFAULT, tmp_path / "new", *options)
    assert code == 1
    assert words in err

"""The command as people use it: in a process of its own, on the embedded model."""

import json
import subprocess
import sys

import numpy as np
import pytest

from altclip_jax import AltCLIP, AltCLIPModel, cli
from altclip_jax.assets import PICTURES, default_checkpoint
from altclip_jax.files.checkpoint_folder import CheckpointError

CAT, APPLE = str(PICTURES / "cat_noto.png"), str(PICTURES / "red_apple_noto.png")


def run(capsys, *arguments):
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_classify_in_two_languages(capsys):
    code, out, _ = run(capsys, "classify", CAT, APPLE, "--labels", "cat", "apple", "猫", "红苹果", "--json")
    assert code == 0
    for entry, right in zip(json.loads(out), ({"cat", "猫"}, {"apple", "红苹果"}), strict=True):
        found = entry["probabilities"]
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
        assert sum(found[label] for label in right) > 0.9
    code, out, _ = run(capsys, "classify", CAT, "--labels", "cat", "rocket", "--templates", "{}", "a {}")
    assert code == 0
    assert out.splitlines()[1].endswith("cat")


def test_similarity_and_embed_say_the_same(capsys, tmp_path):
    _, out, _ = run(capsys, "similarity", CAT, APPLE, "--texts", "cat", "사과", "--json")
    cosine = np.array(json.loads(out)["cosine"])
    for name in ("e.npz", "e.safetensors"):
        code, out, _ = run(capsys, "embed", CAT, APPLE, "--texts", "cat", "사과", "--output", str(tmp_path / name))
        assert code == 0
        assert "2 pictures and 2 texts" in out
    with np.load(tmp_path / "e.npz") as stored:
        assert stored["image_names"].tolist() == [CAT, APPLE]
        np.testing.assert_allclose(stored["images"] @ stored["texts"].T, cosine, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(stored["images"], axis=1), 1, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npz", "e.safetensors"]


def test_folders_and_patterns(capsys):
    _, out, _ = run(capsys, "similarity", str(PICTURES), "--texts", "a", "--json")
    assert len(json.loads(out)["images"]) == 36
    _, out, _ = run(capsys, "similarity", str(PICTURES / "*_noto.png"), "--texts", "a", "--json")
    assert len(json.loads(out)["images"]) == 18


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (["--dtype", "float32"], lambda d: d["files"][0]["dtypes"] == ["float32"]),
        (["--part", "text"], lambda d: d["part"] == "text" and d["parameters"]["total"] == 1_644_416),
        (["--part", "vision"], lambda d: d["part"] == "vision" and d["parameters"]["total"] == 1_820_544),
        (["--form", "orbax"], lambda d: d["files"][0]["name"] == "orbax_params"),
        (["--max-shard-bytes", "3000000"], lambda d: len(d["files"]) > 1),
    ],
)
def test_convert(capsys, tmp_path, options, check):
    code, out, err = run(capsys, "convert", str(default_checkpoint()), str(tmp_path / "new"), *options, "--json")
    assert code == 0, err
    assert check(json.loads(out))
    code, out, _ = run(capsys, "info", str(tmp_path / "new"), "--json")
    assert code == 0
    assert check(json.loads(out))


@pytest.mark.parametrize(
    "words",
    [
        ["classify", str(PICTURES), "--labels", "a"],
        ["similarity", str(PICTURES), "--texts", "a"],
        ["embed", str(PICTURES), "--output", "new.npz"],
        ["embed", str(PICTURES), "--output", "new"],
        ["evaluate", "paper", "--data", "."],
        ["export", "model", "new", "--format", "stablehlo"],
    ],
    ids=" ".join,
)
def test_every_command_tells_the_dtype_of_computation_from_that_of_the_parameters(words, monkeypatch, capsys, tmp_path):
    asked = []

    def told(source=None, **how):
        asked.append((how["dtype"], how["param_dtype"]))
        raise ValueError("asked")

    monkeypatch.setattr(AltCLIP, "from_pretrained", told)
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--dtype", "bfloat16"], ["--param-dtype", "float16"]):
        assert run(capsys, *words, *options) == (1, "", "altclip: asked\n")
    assert asked == [(None, None), ("bfloat16", None), (None, "float16")]


def test_convert_notices_a_difference(monkeypatch, capsys, tmp_path):
    original = AltCLIPModel.from_pretrained.__func__

    def tampered(cls, source, **options):
        model, params = original(cls, source, **options)
        return model, {**params, "logit_scale": params["logit_scale"] + ("new" in str(source))}

    monkeypatch.setattr(AltCLIPModel, "from_pretrained", classmethod(tampered))
    code, _, err = run(capsys, "convert", str(default_checkpoint()), str(tmp_path / "new"))
    assert code == 1
    assert "logit_scale differs" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("classify", "none.png", "--labels", "a"), "none.png: no picture there"),
        (("classify", CAT, "--labels", "a", "--templates", "no place"), "exactly one {}"),
        (("classify", CAT, "--labels", "a", "--model", "/no/where"), "There is no folder /no/where"),
        (("embed", "--output", "x.npz"), "nothing to embed"),
        (("embed", CAT, "--output", "x.csv"), "neither in .npz nor in .safetensors"),
        (("convert", str(default_checkpoint()), str(default_checkpoint())), "the checkpoint itself"),
        (("info", str(PICTURES)), "config.json"),
    ],
)
def test_mistakes_are_sentences_and_exit_with_one(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert words in err


def test_settings_of_a_run_may_stand_behind_its_options(capsys):
    code, _, err = run(capsys, "train", "none.toml", "steps=1", "--dry-run", "--json", "seed=2")
    assert (code, "There is no none.toml" in err) == (1, True)


@pytest.mark.parametrize(
    "arguments", [["classify", CAT], ["info", ".", "--json", "more"], ["train", "none.toml", "--such", "steps=1"]]
)
def test_wrong_usage_exits_with_two(arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_interruption_exits_with_130(capsys, monkeypatch):

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(AltCLIP, "from_pretrained", interrupted)
    assert run(capsys, "classify", CAT, "--labels", "a")[0] == 130


@pytest.mark.parametrize(
    "command",
    [
        "",
        "classify",
        "similarity",
        "embed",
        "index",
        "search",
        "evaluate",
        "evaluate retrieval",
        "evaluate zero-shot",
        "evaluate paper",
        "convert",
        "info",
        "init",
        "train",
        "export",
    ],
)
def test_help_imports_nothing_heavy(command):
    program = (
        "import sys, altclip_jax, altclip_jax.cli as cli\n"
        f"try: cli.main([*{command.split()!r}, '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'PIL', 'orbax', 'optax', 'rich', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage: altclip")


def test_importing_the_models_brings_no_training_libraries():
    program = (
        "import sys; import flax.linen; before = set(sys.modules)\n"
        "from altclip_jax import AltCLIPModel, AltCLIP\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not {'optax', 'orbax', 'torch', 'transformers', 'huggingface_hub', 'sentencepiece'} & new, new\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_object_answers_for_any_length_of_input():
    clip = AltCLIP.from_pretrained()
    assert repr(clip).startswith("AltCLIP('embedded default', 3,505,921 parameters, stored float32")
    assert clip.encode_text([]).shape == (0, 128)
    texts = [f"cat {number}" * (number % 5 + 1) for number in range(70)]
    rows = clip.encode_text(texts, batch_size=16)
    np.testing.assert_allclose(rows[37], clip.encode_text(texts[37])[0], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    pictures = sorted(PICTURES.glob("*.png"))[:9]
    many = clip.encode_images(pictures, batch_size=4)
    np.testing.assert_allclose(many[8], clip.encode_images(pictures[8])[0], atol=2e-6)
    model, params = clip.model, clip.params
    batch = clip.processor(pictures, texts[:3], padding=True)
    direct = model.apply({"params": params}, **batch)
    np.testing.assert_allclose(
        clip.similarity(pictures, texts[:3]), direct.image_embeds @ direct.text_embeds.T, atol=5e-6
    )


def test_the_embedded_model_knows_its_pictures():
    clip = AltCLIP.from_pretrained()
    names = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
    keys = sorted(names)
    for language in ("en", "zh"):
        labels = [names[key][language] for key in keys]
        best = clip.classify([PICTURES / f"{key}_noto.png" for key in keys], labels).argmax(axis=1)
        assert (best == np.arange(len(keys))).sum() >= 15


def test_a_damaged_checkpoint_is_named(tmp_path, capsys):
    data = (default_checkpoint() / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-1000])
    (tmp_path / "config.json").write_text((default_checkpoint() / "config.json").read_text())
    code, _, err = run(capsys, "info", str(tmp_path))
    assert code == 1
    assert str(tmp_path / "model.safetensors") in err
    with pytest.raises(CheckpointError):
        AltCLIPModel.from_pretrained(tmp_path)

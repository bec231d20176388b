"""`altclip export`: a run as a model's folder, a model or a run as programs, and what each of them does not take."""

import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open

from altclip_jax import AltCLIP, cli
from altclip_jax.assets import PICTURES, default_checkpoint

MODEL = str(default_checkpoint())
RUN = f"""
stage = "contrastive"
folder = "run"
steps = 1
batch_size = 8
model.source = "{MODEL}"
data = {{ max_length = 16, train = [{{ path = "list.jsonl" }}] }}
optimizer.warmup_steps = 1
"""


def run(capsys, *words):
    code = cli.main(["export", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_model_becomes_programs_with_all_that_a_server_needs(capsys, loader, tmp_path):
    code, out, err = run(
        capsys, MODEL, tmp_path / "new", "--format", "stablehlo", "--dtype", "bfloat16", "--quantize", "int8",
        "--param-dtype", "bfloat16", "--pictures", "uint8", "--executable", "2x8", "1", "--platforms", "cpu", "tpu",
    )  # fmt: skip
    assert code == 0, err
    assert "for cpu, tpu" in out
    assert (
        "text: input_ids (texts, length) int32, attention_mask (texts, length) int32 -> text_embeds (texts, 128)" in out
    )
    names = ["image-1.executable", "image.jax_export", "manifest.json", "preprocessor_config.json"]
    names += ["special_tokens_map.json", "text-2x8.executable", "text.jax_export", "tokenizer.json"]
    names += ["tokenizer_config.json", "weights.safetensors"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    with safe_open(tmp_path / "new" / "weights.safetensors", "numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16", "I8", "F32"}  # noqa: SIM118
    clip = AltCLIP.from_pretrained(dtype="bfloat16", param_dtype="bfloat16", quantize="int8")
    model = loader.ExportedModel(tmp_path / "new", executables=True)
    noise = 4e-3  # of bfloat16, as docs/numerics.md measures it
    np.testing.assert_allclose(model.encode_texts(["cat", "猫"]), clip.encode_text(["cat", "猫"]), rtol=0, atol=noise)
    picture = PICTURES / "cat_noto.png"
    np.testing.assert_allclose(model.encode_pictures([picture]), clip.encode_images(picture), rtol=0, atol=noise)


def test_json_is_the_manifest(capsys, tmp_path):
    code, out, err = run(
        capsys, MODEL, tmp_path, "--format", "stablehlo", "--programs", "text", "--weights", "inside", "--json"
    )
    assert code == 0, err
    told = json.loads(out)
    assert told.pop("target") == str(tmp_path)
    assert told == json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))


def test_a_run_becomes_a_model_or_programs(capsys, loader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    for name in ("cat", "rocket"):
        shutil.copy(PICTURES / f"{name}_noto.png", f"{name}.png")
    lines = [json.dumps({"image": f"{name}.png", "caption": name}) for name in ("cat", "rocket")]
    (tmp_path / "list.jsonl").write_text("\n".join(lines * 4), encoding="utf-8")
    assert cli.main(["train", "run.toml"]) == 0
    capsys.readouterr()
    assert run(capsys, "run", "model") == (0, "model: the model after step 1 of run\n", "")
    code, out, err = run(
        capsys, "run", "programs", "--format", "stablehlo", "--step", "1", "--programs", "text", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["model"] == "run, step 1"
    found = loader.ExportedModel("programs").encode_texts(["cat"])
    np.testing.assert_allclose(found, AltCLIP.from_pretrained("model").encode_text(["cat"]), rtol=0, atol=1e-6)
    assert run(capsys, "run", "other", "--format", "stablehlo", "--step", "7")[0] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([MODEL, "new"], "is the folder of a model and not of a training run"),
        ([MODEL, "new", "--weights", "inside"], "--weights is for programs: add --format stablehlo"),
        ([MODEL, "new", "--format", "stablehlo", "--step", "3"], "--step is for the folder of a training run"),
        ([MODEL, "new", "--format", "stablehlo", "--best"], "--best is for the folder of a training run"),
        ([MODEL, MODEL, "--format", "stablehlo"], "is the folder of a model or a run: name another one"),
        ([MODEL, "new", "--format", "stablehlo", "--executable", "8x65"], "length must be from 1 to 64"),
        (["nowhere", "new", "--format", "stablehlo"], "nowhere"),
    ],
)
def test_mistakes_are_sentences(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "")
    assert said in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("shape", ["8x", "0", "8x64x2", "axb"])
def test_shapes_that_are_none_are_wrong_usage(shape, capsys):
    with pytest.raises(SystemExit) as caught:
        run(capsys, MODEL, "new", "--format", "stablehlo", "--executable", shape)
    assert caught.value.code == 2

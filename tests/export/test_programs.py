"""Exported programs compute what the model computes, in every shape, and say what they do not take."""

import json

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIP, AltCLIPConfig, AltCLIPModel
from altclip_jax.assets import PICTURES
from altclip_jax.export import programs
from altclip_jax.export.folder import export_program
from altclip_jax.files import whole
from altclip_jax.inference.encoder import encode_images, encode_text

SHAPES = ((1, 1), (3, 17), (8, 64))


def texts(shape, seed=0):
    ids = np.random.default_rng(seed).integers(4, 7990, shape).astype(np.int32)
    mask = np.ones(shape, np.int32)
    if shape[1] > 4:  # one text is shorter
        ids[0, 4:], mask[0, 4:] = 1, 0
    return ids, mask


def pixels(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 3, 32, 32), np.float32)


@pytest.mark.parametrize(
    ("weights", "dtype", "quantize"),
    [
        ("beside", "float32", None),
        ("beside", "bfloat16", None),
        ("beside", "float32", "int8"),
        ("beside", "bfloat16", "int4"),
        ("inside", "float32", None),
        ("inside", "float32", "int4"),
    ],
)
def test_embeddings_are_those_of_the_model_for_any_rows_and_length(
    weights, dtype, quantize, make_clip, loader, tmp_path
):
    clip = make_clip(dtype, quantize)
    export_program(clip, tmp_path / "new", weights=weights)
    model = loader.ExportedModel(tmp_path / "new")
    # equal bit for bit, but where XLA computes with codes that it knows
    noise = 5e-7 if quantize and weights == "inside" else 0
    plain = (weights, dtype, quantize) == ("beside", "float32", None)
    for ids, mask in map(texts, SHAPES if plain else SHAPES[1:2]):
        found = model.run("text", input_ids=ids, attention_mask=mask)["text_embeds"]
        wanted = np.asarray(encode_text(clip.model, clip.params, ids, mask))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=noise)
    for rows in (1, 5) if plain else (2,):
        found = model.run("image", pixel_values=pixels(rows))["image_embeds"]
        wanted = np.asarray(encode_images(clip.model, clip.params, pixels(rows)))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=noise)
    assert (tmp_path / "new" / "weights.safetensors").exists() == (weights == "beside")


def test_both_towers_in_one_program_compare_all_pictures_with_all_texts(clip, exported, loader):
    model = loader.ExportedModel(exported)
    apply = jax.jit(clip.model.apply)
    for rows, shape in ((1, (2, 8)), (3, (1, 64))):
        ids, mask = texts(shape)
        found = model.run("both", input_ids=ids, attention_mask=mask, pixel_values=pixels(rows))
        wanted = apply({"params": clip.params}, ids, pixels(rows), mask)
        for name, values in found.items():
            np.testing.assert_allclose(values, np.asarray(getattr(wanted, name)), rtol=0, atol=1e-5)
        assert found["logits_per_image"].shape == (rows, shape[0])


def test_features_are_not_normalised(clip, loader, tmp_path):
    export_program(clip, tmp_path, programs=["both", "image"], normalize=False, platforms=["cpu"])
    ids, mask = texts((2, 8))
    found = loader.ExportedModel(tmp_path).run("both", input_ids=ids, attention_mask=mask, pixel_values=pixels(3))
    assert list(found) == ["text_features", "image_features"]

    @jax.jit
    def wanted(params):
        return (
            clip.model.apply({"params": params}, ids, mask, method="get_text_features"),
            clip.model.apply({"params": params}, pixels(3), method="get_image_features"),
        )

    for values, features in zip(found.values(), wanted(clip.params), strict=True):
        np.testing.assert_allclose(values, features, rtol=0, atol=1e-5)
        assert abs(np.linalg.norm(values, axis=1) - 1).min() > 0.01


def test_pictures_may_be_bytes_that_the_program_normalises(clip, loader, tmp_path):
    export_program(clip, tmp_path, programs=["image"], pictures="uint8")
    model = loader.ExportedModel(tmp_path)
    files = sorted(PICTURES.glob("*.png"))[:5]
    given = np.stack([clip.processor.image_processor.resize_and_crop(file) for file in files])
    wanted = clip.encode_images(files)
    np.testing.assert_allclose(model.run("image", pictures=given)["image_embeds"], wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.encode_pictures(files), wanted, rtol=0, atol=1e-6)


def test_programs_are_lowered_for_platforms_that_are_not_here(clip, exported):
    for name in ("text", "image", "both"):
        program = jax.export.deserialize(bytearray((exported / f"{name}.jax_export").read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu")
        assert {str(axis) for shape in program.in_avals for axis in shape.shape if not isinstance(axis, int)} <= {
            "texts",
            "length",
            "images",
        }


def test_no_program_tells_of_paths_of_the_machine_that_exported(exported):
    for name in ("text", "image", "both"):
        data = (exported / f"{name}.jax_export").read_bytes()
        assert b"site-packages" not in data
        assert b"altclip_jax/" not in data


def test_a_program_lists_the_weights_that_it_takes(exported):
    manifest = json.loads((exported / "manifest.json").read_text(encoding="utf-8"))
    taken = {name: set(program["weights"]) for name, program in manifest["programs"].items()}
    assert taken["text"] & taken["image"] == {"logit_scale"}
    assert taken["text"] | taken["image"] == taken["both"]


def changed(clip, **processor):
    return AltCLIP(
        clip.model,
        clip.params,
        type(clip.processor)(clip.processor.image_processor.replace(**processor), clip.processor.tokenizer),
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"programs": ["audio"]}, r"programs=\['audio'\] must be of text, image, both, each at most once"),
        ({"programs": []}, "must be of text, image, both"),
        ({"pictures": "int8"}, r"pictures=\['int8'\] must be of float32, uint8"),
        ({"weights": "under"}, "weights='under' is neither 'beside' nor 'inside'"),
        ({"platforms": ["gpu"]}, r"platforms=\['gpu'\] must be of cpu, cuda, rocm, tpu"),
        ({"executables": [(0, 8)]}, "texts=0 is not possible: texts must be at least 1"),
        ({"executables": [(8, 65)]}, "length=65 is not possible: length must be from 1 to 64"),
        ({"executables": [(1, 2, 3)]}, r"for \(texts, length\) or for \(images,\), got \(1, 2, 3\)"),
        ({"executables": [(2,)], "programs": ["text"]}, "one of the program 'image': export that"),
        ({"executables": [(2,)], "platforms": ["tpu"]}, "compiled where it runs, which is cpu here"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(options, words, clip, tmp_path):
    with pytest.raises(ValueError, match=words):
        export_program(clip, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_image_processor_for_another_size_is_refused(clip, tmp_path):
    with pytest.raises(ValueError, match=r"does not fit the model:\n  - .* pictures of 48\*48 pixels"):
        changed(clip, crop_size=48)
    with pytest.raises(ValueError, match="gives pictures of 48x48 pixels and the model takes 32x32"):
        programs.programs_of(clip.model, clip.params, clip.processor.image_processor.replace(crop_size=48), ["image"])
    with pytest.raises(ValueError, match="gives pictures of many sizes"):
        export_program(changed(clip, do_center_crop=False), tmp_path)
    export_program(changed(clip, do_center_crop=False), tmp_path, programs=["text"])


def test_weights_that_no_file_has_room_for_are_refused_before_anything_is_traced(clip, monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "MOST_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="pass weights='beside', store them in param_dtype='bfloat16', or quantize"):
        export_program(clip, tmp_path, weights="inside")


def test_the_folder_of_a_model_is_not_written_into(clip, tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="is the folder of a model or a run"):
        export_program(clip, tmp_path)


def test_programs_take_no_place_of_others(clip, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"of the user")
    with pytest.raises(FileExistsError, match="is not empty, and `altclip export --format stablehlo` has not written"):
        export_program(clip, tmp_path, programs=["text"], weights="inside")
    assert (tmp_path / "weights.safetensors").read_bytes() == b"of the user"


def test_an_export_that_was_killed_is_undone_by_the_next(clip, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    export_program(clip, tmp_path, programs=["text"])
    with monkeypatch.context() as killing:
        killing.setattr(whole, "_undo", die)  # nobody puts anything back, as after a kill
        killing.setattr(whole, "sync_folder", lambda folder: die() if folder == tmp_path else None)
        with pytest.raises(Killed):
            export_program(clip, tmp_path, programs=["image"])
    assert not (tmp_path / "manifest.json").exists()
    export_program(clip, tmp_path, programs=["image"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"manifest.json", "image.jax_export"} <= names
    assert not [name for name in names if name.startswith((".", "text"))]


def test_a_new_export_replaces_an_old_one_whole(clip, tmp_path):
    export_program(clip, tmp_path, programs=["text"], executables=[(1, 8)])
    export_program(clip, tmp_path, programs=["image"], weights="inside")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"manifest.json", "image.jax_export", "tokenizer.json", "preprocessor_config.json"} <= names
    assert not names & {"text.jax_export", "text-1x8.executable", "weights.safetensors"}


def test_a_model_with_relative_positions_is_exported(clip, loader, tmp_path):
    text = {
        **clip.model.config.text_config.to_dict(),
        "position_embedding_type": "relative_key",
        "num_hidden_layers": 1,
    }
    vision = clip.model.config.vision_config
    model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=128))
    params = model.init_params(jax.random.key(0))
    export_program(AltCLIP(model, params, clip.processor), tmp_path, programs=["text"])
    ids, mask = texts((3, 9))
    found = loader.ExportedModel(tmp_path).run("text", input_ids=ids, attention_mask=mask)["text_embeds"]
    np.testing.assert_array_equal(found, np.asarray(encode_text(model, params, ids, mask)))

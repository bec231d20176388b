"""The loader and the server of docs/examples: in a process without this library, and what they refuse."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from altclip_jax.assets import PICTURES
from altclip_jax.export.folder import export_program

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
TEXTS = ["a cat", "一只猫", "кот, который спит", "red apple " * 40, "고양이", "", "  two  spaces ", "😀", "</s> x"]
# Everything that the loader must do without is refused before anything is imported.
BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "altclip_jax flax torch transformers optax orbax sentencepiece".split():
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import json
import numpy as np
from load_exported import ExportedModel

texts, pictures, folders = json.loads(sys.argv[2])
for folder, executables, output in folders:
    model = ExportedModel(folder, executables=executables)
    given = texts[:2] if executables else texts
    np.savez(output, texts=model.encode_texts(given), images=model.encode_pictures(pictures))
"""


def test_a_process_without_this_library_gives_the_same_embeddings(exported, clip, make_clip, tmp_path):
    pictures = sorted(map(str, PICTURES.glob("*.png")))[:3]
    tiny = make_clip("bfloat16", "int4")
    export_program(tiny, tmp_path / "inside", weights="inside", pictures="uint8")
    folders = [
        (str(exported), False, "beside.npz"),
        (str(exported), True, "executable.npz"),
        (str(tmp_path / "inside"), False, "inside.npz"),
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    environment["JAX_DEFAULT_MATMUL_PRECISION"] = "default"  # what the programs ask for counts
    words = [sys.executable, "-c", BARE, str(EXAMPLES), json.dumps([TEXTS, pictures, folders])]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # that of another number of rows; in bfloat16 what docs/numerics.md measures
    for name, model, noise in (("beside", clip, 1e-6), ("executable", clip, 1e-6), ("inside", tiny, 4e-3)):
        with np.load(tmp_path / f"{name}.npz") as found:
            texts = TEXTS[:2] if name == "executable" else TEXTS
            np.testing.assert_allclose(found["texts"], model.encode_text(texts), rtol=0, atol=noise)
            np.testing.assert_allclose(found["images"], model.encode_images(pictures), rtol=0, atol=noise)


def test_texts_and_pictures_are_prepared_as_the_processor_does(exported, clip, loader):
    model = loader.ExportedModel(exported)
    model.encode_texts([])
    wanted = clip.processor(text=TEXTS, truncation=True, max_length=clip.text_limit, return_tensors=None)["input_ids"]
    assert [model._text_preparer.ids(text) for text in TEXTS] == wanted
    files = [*sorted(PICTURES.glob("*.png"))[:4]]
    wide = clip.processor.image_processor
    for file in files:
        np.testing.assert_array_equal(model._prepare(file), wide(file)["pixel_values"][0])


def test_smaller_pictures_than_the_crop_get_black_around_them(exported, clip, loader, tmp_path):
    shutil.copytree(exported, tmp_path / "new")
    processor = clip.processor.image_processor.replace(do_resize=False)
    processor.save_pretrained(tmp_path / "new")
    model = loader.ExportedModel(tmp_path / "new")
    from PIL import Image

    for size in ((7, 50), (31, 9), (40, 41)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        np.testing.assert_array_equal(model._prepare(image), processor(image)["pixel_values"][0])


IDS = np.full((2, 8), 5, np.int32)
MASK = np.ones((2, 8), np.int32)
PIXELS = np.zeros((1, 3, 32, 32), np.float32)


@pytest.mark.parametrize(
    ("program", "inputs", "words"),
    [
        ("audio", {}, "no program 'audio' in the folder; it has text, image, both"),
        ("text", {"input_ids": IDS}, "takes input_ids, attention_mask; got input_ids"),
        ("text", {"input_ids": IDS[:0], "attention_mask": MASK[:0]}, "takes texts of at least 1, got 0"),
        ("text", {"input_ids": IDS[:, :0], "attention_mask": MASK[:, :0]}, "takes length of from 1 to 64, got 0"),
        (
            "text",
            {"input_ids": IDS.repeat(9, 1), "attention_mask": MASK.repeat(9, 1)},
            "length of from 1 to 64, got 72",
        ),
        ("text", {"input_ids": IDS, "attention_mask": MASK[:1]}, r"attention_mask must have shape .* with texts = 2"),
        ("text", {"input_ids": IDS.astype(np.int64), "attention_mask": MASK}, "input_ids must be int32, got int64"),
        ("text", {"input_ids": IDS + 8000, "attention_mask": MASK}, "must be from 0 to 7999, got 8005 to 8005"),
        ("image", {"pixel_values": PIXELS[:0]}, "takes images of at least 1, got 0"),
        ("image", {"pixel_values": PIXELS[0]}, r"must have shape \(images, 3, 32, 32\), got \(3, 32, 32\)"),
        ("image", {"pixel_values": PIXELS[..., :16]}, r"must have shape \(images, 3, 32, 32\), got \(1, 3, 32, 16\)"),
        ("image", {"pixel_values": PIXELS.astype(np.uint8)}, "pixel_values must be float32, got uint8"),
    ],
)
def test_inputs_that_a_program_does_not_take_are_sentences(program, inputs, words, exported, loader):
    with pytest.raises(loader.ExportError, match=words):
        loader.ExportedModel(exported).run(program, **inputs)


def change(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def described(folder, name, data):
    """Replaces a file, and what the manifest says of it."""
    import hashlib

    (folder / f"{name}.jax_export").write_bytes(data)
    programs = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["programs"]
    programs[name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(folder, programs=programs)


DAMAGES = {
    "There is no .*manifest.json": lambda folder: (folder / "manifest.json").unlink(),
    "is not valid JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "nested too deep": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    "config.json is not valid JSON": lambda folder: (folder / "preprocessor_config.json").write_text("[" * 100_000),
    "does not tell of programs": lambda folder: change(folder, format="other"),
    "is of version 2 and this loader reads 1": lambda folder: change(folder, version=2),
    "calling convention 99, and jax .* install jax": lambda folder: change(folder, calling_convention_version=99),
    "was exported by jax 99.1.0, and jax .* here is older": lambda folder: change(folder, made_by={"jax": "99.1.0"}),
    "was exported for cuda, and this process runs on cpu": lambda folder: change(folder, platforms=["cuda"]),
    "There is no .*text.jax_export": lambda folder: (folder / "text.jax_export").unlink(),
    "has 3 bytes where manifest.json says": lambda folder: (folder / "text.jax_export").write_bytes(b"abc"),
    "text.jax_export is damaged, its checksum": lambda folder: flip(folder / "text.jax_export"),
    "weights.safetensors is damaged, its checksum": lambda folder: flip(folder / "weights.safetensors"),
    "is no program that jax .* can read": lambda folder: described(folder, "text", b"no program at all"),
    "has no tokenizer.json, since the model had none": lambda folder: change(
        folder, texts=json.loads((folder / "manifest.json").read_text("utf-8"))["texts"] | {"tokenizer": None}
    ),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("words", DAMAGES)
def test_damaged_and_foreign_folders_are_sentences(words, exported, loader, tmp_path):
    shutil.copytree(exported, tmp_path / "new")
    DAMAGES[words](tmp_path / "new")
    with pytest.raises(ValueError, match=words):
        loader.ExportedModel(tmp_path / "new").encode_texts(["a cat"])


def test_executables_run_only_where_they_were_compiled_and_for_their_shapes(exported, clip, loader, tmp_path):
    with pytest.raises(loader.ExportError, match="No executable takes 1 rows of 64 tokens"):
        loader.ExportedModel(exported, executables=True).encode_texts(["red apple " * 40])
    with pytest.raises(loader.ExportError, match=r"has no executable for \('text', 2, 8\)"):
        loader.ExportedModel(exported, executables=True).run("text", input_ids=IDS, attention_mask=MASK)
    shutil.copytree(exported, tmp_path / "new")
    compiled = json.loads((exported / "manifest.json").read_text(encoding="utf-8"))["executables"]
    for name, other in (("jax", "0.0.1"), ("processor", "x86_64-00000000")):
        change(tmp_path / "new", executables=compiled | {"machine": compiled["machine"] | {name: other}})
        with pytest.raises(loader.ExportError, match=f"another machine or jax: {name} is .*, not '{other}'"):
            loader.ExportedModel(tmp_path / "new", executables=True)
    change(tmp_path / "new", executables=None)
    with pytest.raises(loader.ExportError, match="has no executables: export with `--executable"):
        loader.ExportedModel(tmp_path / "new", executables=True)


def test_the_loader_knows_a_machine_as_the_export_does(loader):
    from altclip_jax.export.executables import fingerprint

    assert loader.fingerprint() == fingerprint()


@pytest.mark.parametrize("executables", [False, True])
def test_programs_run_on_the_default_device_and_executables_on_the_first(exported, loader, executables):
    first, third = jax.devices()[0], jax.devices()[3]
    with jax.default_device(third):
        model = loader.ExportedModel(exported, executables=executables)
        weights = {name: model._weights[name] for name in model.manifest["programs"]["text"]["weights"]}
        ids = np.full((4, 16), 5, np.int32)
        (found,) = model._callable("text", {"texts": 4, "length": 16})(weights, ids, np.ones_like(ids))
    devices = {device for leaf in (*model._weights.values(), found) for device in leaf.devices()}
    assert devices == {first if executables else third}


def test_an_executable_is_for_the_first_device_whatever_the_default(clip, loader, tmp_path):
    picture = PICTURES / "cat_noto.png"
    with jax.default_device(jax.devices()[3]):
        export_program(clip, tmp_path / "new", programs=["image"], executables=[(1,)])
    found = loader.ExportedModel(tmp_path / "new", executables=True).encode_pictures([picture])
    np.testing.assert_allclose(found, clip.encode_images(picture), rtol=0, atol=1e-6)


def test_more_rows_than_go_through_at_once_and_none(exported, clip, loader):
    model = loader.ExportedModel(exported, most_rows=2)
    names = ["cat", "rocket", "umbrella", "banana", "a very long name of a cat"]
    np.testing.assert_allclose(model.encode_texts(names), clip.encode_text(names), rtol=0, atol=1e-6)
    assert model.encode_texts([]).shape == model.encode_pictures([]).shape == (0, 128)


@pytest.fixture
def ask(exported, loader):
    """A function (path, body) -> (code, answer) of a server in this process."""
    import serve_exported

    serve_exported.Handler.log_message = lambda *_: None
    with serve_exported.make_server(loader.ExportedModel(exported)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def asked(path, body=None):
            request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", data=body)
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)

        yield asked
        server.shutdown()
        thread.join()


def test_a_server_answers_texts_and_pictures_and_says_what_is_wrong(ask, clip):
    code, told = ask("/")
    assert (code, told["programs"]) == (200, ["text", "image", "both"])
    code, answer = ask("/texts", json.dumps({"texts": ["a cat", "一只猫"]}).encode())
    assert code == 200
    np.testing.assert_allclose(answer["embeddings"], clip.encode_text(["a cat", "一只猫"]), rtol=0, atol=1e-6)
    picture = PICTURES / "cat_noto.png"
    code, answer = ask("/picture", picture.read_bytes())
    assert code == 200
    np.testing.assert_allclose(answer["embeddings"], clip.encode_images(picture), rtol=0, atol=1e-6)
    for path, body, expected, words in (
        ("/nothing", None, 404, "There is nothing at /nothing"),
        ("/nothing", b"{}", 404, "There is nothing at /nothing"),
        ("/texts", b"{}", 400, "Expected"),
        ("/texts", b"no", 400, "Expecting value"),
        ("/texts", b"[" * 100_000, 400, "brackets are nested too deep"),
        ("/texts", b'{"texts": [3]}', 400, "A text is a string, got int"),
        ("/picture", b"<html>", 400, "is no picture that can be read"),
    ):
        code, answer = ask(path, body)
        assert (code, words in answer["error"]) == (expected, True), answer


def test_precision_of_products_is_that_of_the_export(exported):
    """This process asks for "highest" (see conftest), and the program says so wherever it runs."""
    program = jax.export.deserialize(bytearray((exported / "text.jax_export").read_bytes()))
    assert "precision = [HIGHEST, HIGHEST]" in program.mlir_module()


def test_an_executable_loads_though_the_process_keeps_what_it_compiled(clip, loader, tmp_path):
    """A program that came from jax's cache on disk would be written without its functions."""
    settings = {"jax_compilation_cache_dir": str(tmp_path / "cache"), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.jit(lambda x: x + 1)(1.0)
        for turn in range(2):
            jax.clear_caches()
            export_program(clip, tmp_path / str(turn), programs=["image"], executables=[(1,)])
        found = loader.ExportedModel(tmp_path / "1", executables=True).encode_pictures([PICTURES / "cat_noto.png"])
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    np.testing.assert_allclose(found, clip.encode_images(PICTURES / "cat_noto.png"), rtol=0, atol=2e-6)


def test_pictures_are_prepared_upright_as_altclip_does(exported, clip, loader, photograph, store_turned, tmp_path):
    shutil.copy(exported / "preprocessor_config.json", tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["apply_exif_orientation"] is True
    upright = clip.processor(images=photograph)["pixel_values"][0]

    def prepared(orientation):
        return loader.PicturePreparer(tmp_path, as_bytes=False, most_pixels=10_000)(
            store_turned(photograph, orientation)
        )

    for orientation in range(1, 9):
        np.testing.assert_array_equal(prepared(orientation), upright)
    del settings["apply_exif_orientation"]  # as release 0.1.0 wrote it
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert not np.array_equal(prepared(6), upright)


def test_damaged_exif_does_not_hinder_the_loader(exported, loader, photograph):
    file = io.BytesIO()
    photograph.save(file, "png", exif=b"II*\0\xff\xff\xff\xff")
    prepare = loader.PicturePreparer(exported, as_bytes=False, most_pixels=10_000)
    np.testing.assert_array_equal(prepare(file.getvalue()), prepare(photograph))

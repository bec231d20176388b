"""Every readable picture and caption has its row, in order, whoever embeds which part and wherever it is killed."""

import json

import numpy as np
import pytest

from altclip_jax import AltCLIPProcessor
from altclip_jax.corpus.embed import Settings, describe, embed_corpus
from altclip_jax.corpus.forms import Rows
from altclip_jax.corpus.items import open_corpus
from altclip_jax.corpus.store import Store
from altclip_jax.files.lock import hold_together
from altclip_jax.parallel import make_mesh

SMALL = Settings(part_items=4, batch_size=3, tokens=64, threads=2)


@pytest.fixture
def corpus(mixed):
    return open_corpus([str(mixed / name) for name in ("pictures", "list.jsonl", "shard.tar", "captions.txt")])


def told(store, kind):
    return [row for part in range(store.parts) for row in store.told(part, kind)]


def values(store, kind):
    return np.concatenate([store.values(part, kind) for part in range(store.parts)])


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_are_the_embeddings_of_what_they_say(clip, corpus, tmp_path, pictures):
    embed_corpus(clip, corpus, tmp_path / "store", SMALL)
    store = Store.open(tmp_path / "store")
    assert store.missing() == []
    images, texts = told(store, "images"), told(store, "texts")
    # 5 in the folder, 3 in the list, 2 in the shard
    assert [row["item"] for row in images] == [0, 1, 2, 3, 5, 6, 7, 9, 13, 14]
    assert [row["text"] for row in texts] == [
        *("beside it", "one", "two", "闹钟", "clock", "alone", "Füße", "no picture", "a caption all the same"),
        *("first", "x", "letzte Zeile"),
    ]
    assert [row.get("language") for row in texts[3:6]] == ["zh", "en", "en"]
    files = [row["id"] for row in images[:8]]
    np.testing.assert_allclose(values(store, "images")[:8], clip.encode_images(files), atol=2e-6)
    np.testing.assert_allclose(values(store, "images")[8:], clip.encode_images(pictures[9:11]), atol=2e-6)
    np.testing.assert_allclose(values(store, "texts"), clip.encode_text([row["text"] for row in texts]), atol=2e-6)
    unreadable = [json.loads(line) for line in store.list_unreadable().read_text(encoding="utf-8").splitlines()]
    assert [row["item"] for row in unreadable] == [4, 7, 10, 11, 12, 16, 18]
    assert "Pillow" in unreadable[0]["reason"]
    assert unreadable[1]["reason"].endswith("cannot be read (No such file or directory)")
    assert store.total() == (10, 12, 7)


def test_what_a_kill_leaves_is_done_again_and_nothing_else(clip, corpus, tmp_path):
    folder = tmp_path / "store"
    embed_corpus(clip, corpus, folder, SMALL)
    whole = snapshot(folder)
    marker = folder / "part-00001.json"
    kept = (folder / "part-00000.json").stat()
    marker.unlink()  # killed before the last of its files had its name
    (folder / "part-00001.texts.npy").write_bytes(b"of another try")
    (folder / ".part-00001.images.npy.0123abcd.tmp").write_bytes(b"half")
    (folder / ".part-00001.json.0123abcd.old").write_bytes(b"{}")
    mine = [folder / f"part-00001.{name}" for name in ("jsonl", "backup.csv", "images.npy.copy", "images.parquet")]
    mine += [folder / ".part-00001.images.npy.mine.tmp", folder / ".part-00001.notes.0123abcd.tmp"]
    for path in mine:
        path.write_bytes(b"of the user")
    pace = embed_corpus(clip, corpus, folder, SMALL, resume=True)
    assert pace.done == 4
    for path in mine:
        assert path.read_bytes() == b"of the user"
        path.unlink()
    assert snapshot(folder) == whole
    assert (folder / "part-00000.json").stat().st_mtime_ns == kept.st_mtime_ns
    assert embed_corpus(clip, corpus, folder, SMALL, resume=True).done == 0


@pytest.mark.parametrize("locks", [True, False])
def test_what_another_process_writes_just_now_stays(clip, corpus, tmp_path, monkeypatch, locks):
    folder = tmp_path / "store"
    embed_corpus(clip, corpus, folder, SMALL)
    (folder / "part-00001.json").unlink()
    under_way = folder / ".part-00001.images.npy.0123abcd.tmp"
    under_way.write_bytes(b"half")
    with monkeypatch.context() as patch, hold_together(folder / ".lock", list):
        if not locks:
            patch.setattr("altclip_jax.files.lock.fcntl", None)
        embed_corpus(clip, corpus, folder, SMALL, resume=True)
        assert under_way.exists()
    (folder / "part-00001.json").unlink()
    embed_corpus(clip, corpus, folder, SMALL, resume=True)  # alone
    assert not under_way.exists()


def test_processes_make_each_their_parts(clip, corpus, tmp_path):
    embed_corpus(clip, corpus, tmp_path / "one", SMALL)
    for share in ((1, 3), (0, 3), (2, 3)):
        embed_corpus(clip, corpus, tmp_path / "three", SMALL, resume=True, share=share)
    assert snapshot(tmp_path / "three") == snapshot(tmp_path / "one")


def test_a_mesh_gives_the_same(clip, corpus, tmp_path):
    embed_corpus(clip, corpus, tmp_path / "one", SMALL)
    embed_corpus(clip, corpus, tmp_path / "mesh", SMALL, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    one, mesh = Store.open(tmp_path / "one"), Store.open(tmp_path / "mesh")
    for kind in ("images", "texts"):
        np.testing.assert_allclose(values(mesh, kind), values(one, kind), atol=1e-6)
        assert told(mesh, kind) == told(one, kind)


@pytest.mark.parametrize("form", ["npy", "safetensors", "parquet"])
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_forms_and_dtypes_of_the_rows(clip, corpus, tmp_path, form, stored):
    settings = Settings(part_items=100, kinds=("texts",), form=form, stored=stored)
    embed_corpus(clip, corpus, tmp_path / "store", settings)
    store = Store.open(tmp_path / "store")
    found = store.values(0, "texts")
    assert found.dtype == stored
    assert store.total() == (0, 12, 4)  # pictures are not looked at
    np.testing.assert_allclose(
        found,
        clip.encode_text([row["text"] for row in told(store, "texts")]),
        atol=2e-6 if stored == "float32" else 1e-3,
    )


def test_a_store_of_something_else_is_not_continued(clip, corpus, mixed, tmp_path):
    folder = tmp_path / "store"
    embed_corpus(clip, corpus, folder, SMALL)
    with pytest.raises(FileExistsError, match="--resume"):
        embed_corpus(clip, corpus, folder, SMALL)
    with pytest.raises(ValueError, match="part_items was 4 and is 5"):
        embed_corpus(clip, corpus, folder, Settings(part_items=5), resume=True)
    (mixed / "captions.txt").write_text("others")
    other = open_corpus([str(mixed / "captions.txt")])
    with pytest.raises(ValueError, match=r"corpus was .* items was 21 and is 1"):
        embed_corpus(clip, other, folder, SMALL, resume=True)


@pytest.fixture
def other(clip):
    """A model of which only a large parameter is another."""
    kernel = {"kernel": -3 * clip.params["text_projection"]["kernel"]}
    return type(clip)(clip.model, {**clip.params, "text_projection": kernel}, clip.processor)


def test_another_checkpoint_is_told_by_its_parameters(clip, other, corpus, tmp_path):
    embed_corpus(clip, corpus, tmp_path / "store", SMALL)
    with pytest.raises(ValueError, match=r"fingerprint was '2:.*' and is '2:.*"):
        embed_corpus(other, corpus, tmp_path / "store", SMALL, resume=True)


def test_a_store_of_0_1_0_goes_on_and_what_it_leaves_open_is_said(clip, other, corpus, tmp_path):
    folder = tmp_path / "store"
    embed_corpus(clip, corpus, folder, SMALL)
    whole = snapshot(folder)
    told = json.loads(whole["store.json"])
    (folder / "store.json").write_text(json.dumps({**told, "fingerprint": clip.fingerprint(version=1)}))
    (folder / "part-00001.json").unlink()
    before = (folder / "store.json").read_bytes()
    for model in (clip, other):  # it cannot tell these two apart
        with pytest.warns(UserWarning, match=r"begun by altclip_jax 0\.1\.0, .* is not known"):
            embed_corpus(model, corpus, folder, SMALL, resume=True)
    assert snapshot(folder) == {**whole, "store.json": before}
    changed = type(clip)(clip.model, {**clip.params, "logit_scale": clip.params["logit_scale"] + 1}, clip.processor)
    with pytest.raises(ValueError, match="fingerprint was"):
        embed_corpus(changed, corpus, folder, SMALL, resume=True)
    (folder / "store.json").write_text(json.dumps({**told, "fingerprint": "3:0"}))
    with pytest.raises(ValueError, match="version 3 was made by a later altclip_jax"):
        embed_corpus(clip, corpus, folder, SMALL, resume=True)


def test_names_that_are_not_utf8_come_back(clip, corpus, tmp_path):
    store = Store.begin(tmp_path / "store", describe(clip, corpus, SMALL), resume=False)
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    store.write(0, {"images": Rows(np.ones((1, 128), np.float32), [{"item": 0, "id": name}])}, [])
    assert next(store.told(0, "images"))["id"] == name


def test_a_store_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="altclip embed"):
        Store.open(tmp_path)
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(ValueError, match="not what `altclip embed` writes"):
        Store.open(tmp_path)


@pytest.fixture
def photos(tmp_path, photograph, store_turned):
    """Five pictures in a folder, of which some are turned by their EXIF."""
    (tmp_path / "photos").mkdir()
    for place, orientation in enumerate((1, 6, 3, 8, 5)):
        (tmp_path / "photos" / f"{place}.png").write_bytes(store_turned(photograph, orientation))
    return open_corpus([str(tmp_path / "photos")])


def test_photographs_are_embedded_upright(clip, photos, photograph, tmp_path):
    embed_corpus(clip, photos, tmp_path / "store", SMALL)
    store = Store.open(tmp_path / "store")
    assert store.description.orientation == "exif"
    rows = values(store, "images")
    np.testing.assert_allclose(rows, np.repeat(clip.encode_images(photograph), 5, axis=0), rtol=0, atol=2e-6)


def test_a_store_of_0_1_0_goes_on_as_it_was_begun_with_pictures_as_they_are_stored(clip, photos, tmp_path):
    pictures = clip.processor.image_processor.orient("stored")
    unturned = type(clip)(clip.model, clip.params, AltCLIPProcessor(pictures, clip.processor.tokenizer))
    folder = tmp_path / "store"
    embed_corpus(unturned, photos, folder, SMALL)
    before = snapshot(folder)
    told = json.loads(before["store.json"])
    assert told.pop("orientation") == "stored"
    (folder / "store.json").write_text(json.dumps(told))  # as that version wrote it
    (folder / "part-00000.json").unlink()
    embed_corpus(clip, photos, folder, SMALL, resume=True)
    assert snapshot(folder) == {**before, "store.json": json.dumps(told).encode()}
    explicit = AltCLIPProcessor(pictures.replace(apply_exif_orientation=True), clip.processor.tokenizer)
    with pytest.raises(ValueError, match="orientation was 'stored' and is 'exif'"):
        embed_corpus(type(clip)(clip.model, clip.params, explicit), photos, folder, SMALL, resume=True)

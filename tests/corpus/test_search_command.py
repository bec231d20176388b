"""`altclip index` and `altclip search` on a corpus that `altclip embed` has written."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from altclip_jax import AltCLIP, AltCLIPModel, cli
from altclip_jax.assets import PICTURES, default_checkpoint
from altclip_jax.corpus.contact_sheet import Row, contact_sheet, picture_of
from altclip_jax.corpus.index import Index


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    names = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
    lines = [text for key in sorted(names) for text in names[key].values()]
    (folder / "captions.txt").write_text("\n".join(lines), encoding="utf-8")
    inputs = (str(PICTURES), str(folder / "captions.txt"))
    assert cli.main(["embed", *inputs, "--output", str(folder / "store"), "--part-items", "10"]) == 0
    assert cli.main(["index", str(folder / "store")]) == 0
    return folder / "store"


@pytest.mark.parametrize("query", ["red heart", "红色的心", "corazón rojo"])
def test_a_text_in_any_language_finds_the_picture(capsys, store, query, clip):
    code, out, _ = run(capsys, "search", query, "--index", store, "--top", 5, "--json")
    assert code == 0
    (found,) = json.loads(out)
    assert found["query"] == query
    assert "red_heart" in found["hits"][0]["id"]
    index = Index(store / "index", "images")
    scores = clip.encode_text(query) @ np.asarray(index.values).T
    assert [hit["row"] for hit in found["hits"]] == np.argsort(-scores[0], kind="stable")[:5].tolist()
    np.testing.assert_allclose([hit["score"] for hit in found["hits"]], np.sort(scores[0])[::-1][:5], atol=1e-6)


def test_a_picture_finds_itself_and_captions(capsys, store):
    cat = PICTURES / "cat_noto.png"
    _, out, _ = run(capsys, "search", "rocket", "--image", cat, "--index", store / "index", "--top", 2)
    lines = out.splitlines()
    assert lines[0] == "rocket"
    assert lines[3] == str(cat)
    assert lines[4].split() == ["1", "1.0000", str(cat)]
    _, out, _ = run(capsys, "search", "--image", cat, "--index", store, "--among", "texts", "--top", 3, "--json")
    (found,) = json.loads(out)
    names = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))["cat"]
    assert found["hits"][0]["text"] in names.values()
    assert all(hit["id"].startswith(str(store.parent / "captions.txt")) for hit in found["hits"])


def test_the_sheet_shows_query_and_hits(capsys, store, tmp_path):
    sheet, cat = tmp_path / "sheets" / "sheet.png", PICTURES / "cat_noto.png"
    assert run(capsys, "search", "cat", "--image", cat, "--index", store, "--top", 7, "--contact-sheet", sheet)[0] == 0
    image = Image.open(sheet).convert("RGB")
    assert image.size == (6 * 172 + 12, 4 * 190 + 12)  # a column for the query; two lines for each
    places = {
        (column, line): np.asarray(
            image.crop((12 + 172 * column, 12 + 190 * line, 172 * (column + 1), 172 + 190 * line))
        )
        for column in range(6)
        for line in range(4)
    }
    np.testing.assert_array_equal(places[0, 2], places[1, 2])  # the picture finds itself first
    assert (places[0, 0] == 255).all()  # a text has no picture
    assert all((places[column, 0] != 255).any() for column in range(1, 6))
    assert (places[3, 1] == 255).all()  # the seventh is the last


def test_pictures_in_shards_are_shown_and_lost_ones_are_crosses(pictures, write_tar, tmp_path):
    shard = write_tar(tmp_path / "a.tar", {"x/cat.png": pictures[4].read_bytes(), "dog.txt": b"dog"})
    names = [f"{shard}/x/cat", f"{shard}/dog", f"{shard}/none", str(tmp_path / "none.png"), str(pictures[4])]
    data, missing = contact_sheet([Row(None, [(picture_of(name), "1") for name in names])])
    assert missing == names[1:4]
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(image[12:172, 12:172], image[12:172, 12 + 4 * 172 : 172 + 4 * 172])


def test_mistakes_are_sentences(capsys, store, tmp_path):
    for arguments, words in [
        (("search", "--index", store), "nothing to search for"),
        (("search", "a", "--index", tmp_path), "There is no index of texts"),
        (("search", "a", "--index", store, "--among", "texts", "--contact-sheet", "x.png"), "shows pictures"),
        (("index", tmp_path), "store.json"),
        (("search", "a", "--image", "none.png", "--index", store), "none.png"),
    ]:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, "")
        assert words in err


def test_an_index_and_a_sheet_take_no_place_of_others(capsys, store, pictures, tmp_path):
    mine, cat = tmp_path / "mine", tmp_path / "cat.png"
    mine.mkdir()
    (mine / "images.npy").write_bytes(b"of the user")
    cat.write_bytes(pictures[4].read_bytes())
    for arguments, words in [
        (("index", store, "--output", mine), "is not empty, and `altclip index` has not written"),
        (("index", store, "--output", store), "is read, and is to be written"),
        (("index", store, "--output", store.parent), "is read, and is in"),
        (("search", "--image", cat, "--index", store, "--contact-sheet", cat), "is read, and is to be written"),
    ]:
        code, _, err = run(capsys, *arguments)
        assert (code, words in err) == (1, True), err
    assert (mine / "images.npy").read_bytes() == b"of the user"
    assert cat.read_bytes() == pictures[4].read_bytes()


def test_an_index_of_an_unfinished_store_or_another_model_is_refused(capsys, store, tmp_path):
    model, params = AltCLIPModel.from_pretrained(default_checkpoint())
    changed = {**params, "text_projection": {"kernel": -3 * params["text_projection"]["kernel"]}}
    model.save_pretrained(tmp_path / "other", changed)
    for file in default_checkpoint().iterdir():
        if not (tmp_path / "other" / file.name).exists():
            (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    code, _, err = run(capsys, "search", "a", "--index", store, "--model", tmp_path / "other")
    assert (code, "another model, embedded default" in err) == (1, True)
    told = store / "index" / "images.index.json"  # of version 0.1.0, which could not tell these two apart
    kept = told.read_bytes()
    old = AltCLIP.from_pretrained().fingerprint(version=1)
    told.write_text(json.dumps({**json.loads(kept), "fingerprint": old}))
    try:
        code, _, err = run(capsys, "search", "a", "--index", store, "--model", tmp_path / "other")
    finally:
        told.write_bytes(kept)
    assert (code, "begun by altclip_jax 0.1.0" in err) == (0, True)
    part = store / "part-00001.json"
    kept = part.read_bytes()
    part.unlink()
    try:
        code, _, err = run(capsys, "index", store, "--output", tmp_path / "index")
    finally:
        part.write_bytes(kept)
    assert (code, "lacks 1 of" in err) == (1, True)


def test_photographs_stand_upright_on_a_sheet(photograph, store_turned, tmp_path):
    (tmp_path / "upright.png").write_bytes(store_turned(photograph, 1))
    (tmp_path / "turned.png").write_bytes(store_turned(photograph, 6))
    sheets = [contact_sheet([Row(picture_of(str(tmp_path / name)), [])]) for name in ("upright.png", "turned.png")]
    assert sheets[0] == sheets[1]

"""The approximate index finds nearly what the exact search finds, ranks it likewise, and says how much it misses."""

import json
import sys

import numpy as np
import pytest

from altclip_jax import cli
from altclip_jax.corpus.approximate import ApproximateIndex
from altclip_jax.corpus.index import Index
from altclip_jax.corpus.search import exact_scores, search


def clustered(generator, rows, width=48, centres=200):
    """Unit rows in heaps, as embeddings are."""
    heaps = np.random.default_rng(7).standard_normal((centres, width))
    values = heaps[generator.integers(centres, size=rows)] + 0.5 * generator.standard_normal((rows, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def write_index(folder, kind, values):
    np.save(folder / f"{kind}.npy", values)
    np.save(folder / f"{kind}.offsets.npy", np.zeros(len(values) + 1, np.int64))
    told = {"model": "made", "fingerprint": "0", "rows": len(values)}
    (folder / f"{kind}.index.json").write_text(json.dumps(told), encoding="utf-8")
    return Index(folder, kind)


@pytest.fixture
def index(tmp_path):
    return write_index(tmp_path, "images", clustered(np.random.default_rng(0), 20_000))


def test_it_finds_as_many_of_the_best_as_it_says_of_queries_like_those_it_was_measured_with(index, tmp_path):
    texts = write_index(tmp_path, "texts", clustered(np.random.default_rng(1), 2000))
    told = ApproximateIndex.build(index, like=texts).told
    assert told.recipe == "IVF512,SQfp16"
    assert told.questions == (256, "texts")
    assert told.probes < 512 / 8  # far from looking through all
    assert told.recall >= 0.95
    queries = clustered(np.random.default_rng(2), 200)
    found, right = ApproximateIndex.open(index).search(queries, 10), search(index.values, queries, 10)
    recall = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(found.rows, right.rows, strict=True)])
    assert recall >= 0.9


def test_what_it_finds_has_the_exact_scores_in_their_order(index):
    ApproximateIndex.build(index)
    queries = clustered(np.random.default_rng(3), 5)
    found = ApproximateIndex.open(index).search(queries, 20)
    for query, rows, scores in zip(queries, found.rows, found.scores, strict=True):
        np.testing.assert_array_equal(scores, exact_scores(index.values[rows], query))
        assert (np.diff(scores) <= 0).all()
        assert len(set(rows.tolist())) == 20


def test_with_all_lists_it_is_the_exact_search(index):
    ApproximateIndex.build(index)
    queries = clustered(np.random.default_rng(4), 20)
    found, right = ApproximateIndex.open(index).search(queries, 10, probes=10**6), search(index.values, queries, 10)
    np.testing.assert_array_equal(found.rows, right.rows)
    np.testing.assert_array_equal(found.scores, right.scores)


def test_more_hits_than_a_few_lists_hold_are_found_in_more_of_them(index):
    ApproximateIndex.build(index)
    found = ApproximateIndex.open(index).search(index.values[:2], 5000, probes=1)
    assert found.rows.shape == (2, 5000)
    assert len(set(found.rows[0].tolist())) == 5000


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_few_rows_have_an_index_too(tmp_path, rows):
    small = write_index(tmp_path, "images", clustered(np.random.default_rng(5), rows))
    ApproximateIndex.build(small)
    found = ApproximateIndex.open(small).search(small.values, 3)
    np.testing.assert_array_equal(found.rows, search(small.values, small.values, 3).rows)


def test_an_index_of_other_rows_and_none_at_all_are_told_apart(index, tmp_path):
    with pytest.raises(FileNotFoundError, match="make it with `altclip index STORE --approximate`"):
        ApproximateIndex.open(index)
    ApproximateIndex.build(index)
    write_index(tmp_path, "images", clustered(np.random.default_rng(6), 20_000))
    with pytest.raises(ValueError, match="is of other rows than the index beside it"):
        ApproximateIndex.open(Index(tmp_path, "images"))


@pytest.mark.parametrize(
    ("recipe", "words"), [("IVF8,Nonsense", "makes no index of the recipe"), ("Flat", "no inverted")]
)
def test_a_recipe_that_makes_no_lists_is_refused(index, recipe, words):
    with pytest.raises(ValueError, match=words):
        ApproximateIndex.build(index, recipe)


def test_numbers_out_of_range_are_refused(index):
    ApproximateIndex.build(index)
    opened = ApproximateIndex.open(index)
    for options, words in (({"k": 0}, "k=0"), ({"k": 1, "probes": 0}, "probes=0")):
        with pytest.raises(ValueError, match=words):
            opened.search(index.values[:1], **options)
    with pytest.raises(ValueError, match="The queries have 8 numbers each and the rows 48"):
        opened.search(np.zeros((1, 8), np.float32), 1)


def test_without_faiss_a_sentence_says_what_to_install(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"pip install 'altclip-jax\[approximate\]'"):
        ApproximateIndex.build(index)


def test_the_command_makes_it_and_searches_with_it(capsys, tmp_path, pictures):
    (tmp_path / "captions.txt").write_text("red heart\n火箭\nun gatto\n", encoding="utf-8")
    store = tmp_path / "store"
    inputs = [str(pictures[0].parent), str(tmp_path / "captions.txt")]
    assert cli.main(["embed", *inputs, "--output", str(store)]) == 0
    capsys.readouterr()
    assert cli.main(["index", str(store), "--approximate", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["approximate"]
    assert told["images"]["questions"] == [3, "texts"]
    assert told["images"]["recall"] >= 0.95
    hits = []
    for option in ([], ["--approximate", "--probes", "99"]):
        assert cli.main(["search", "红色的心", "--index", str(store), "--top", "4", "--json", *option]) == 0
        hits.append(json.loads(capsys.readouterr().out))
    assert hits[0] == hits[1]
    assert cli.main(["search", "x", "--index", str(store), "--probes", "3"]) == 1
    assert "add --approximate" in capsys.readouterr().err

"""Exact search finds what numpy finds, in the same order, whatever is equal or nearly so."""

import numpy as np
import pytest

from altclip_jax.corpus.search import exact_scores, search


def units(generator, rows, width, dtype=np.float32):
    values = generator.standard_normal((rows, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(dtype)


def expected(values, queries, k):
    scores = np.stack([exact_scores(values, query) for query in queries])
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


def check(values, queries, k, **options):
    found = search(values, queries, k, **options)
    rows, scores = expected(values, queries, k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (7, 20), (1000, 1), (1000, 10), (5000, 300)])
def test_ranks_are_those_of_numpy(rows, k, dtype):
    generator = np.random.default_rng(rows + k)
    check(units(generator, rows, 128, dtype), units(generator, 5, 128), k, block=256)


def test_of_equal_rows_the_first_wins():
    generator = np.random.default_rng(0)
    values = np.repeat(units(generator, 40, 64), 50, axis=0)[generator.permutation(2000)]
    check(values, units(generator, 4, 64), 60, block=333)
    check(np.repeat(values[:1], 500, axis=0), values[:2], 10, block=64)


def test_rows_that_float32_cannot_tell_apart_are_ranked():
    # steps far below the rounding of a float32 product, in an order that has nothing to do with them
    generator = np.random.default_rng(1)
    values = np.repeat(units(generator, 1, 256), 3000, axis=0)
    values += (generator.standard_normal((3000, 256)) * 1e-8).astype(np.float32)
    queries = np.concatenate([values[:2], units(generator, 2, 256)])
    ranks = np.argsort(-(values @ queries.T).T, axis=1, kind="stable")[:, :25]
    assert (ranks != expected(values, queries, 25)[0]).any()  # float32 alone would be wrong
    check(values, queries, 25, block=512)


def test_many_queries():
    generator = np.random.default_rng(5)
    check(units(generator, 200, 16), units(generator, 1100, 16), 3)


def test_rows_with_nan_are_behind_all_others():
    generator = np.random.default_rng(2)
    values = units(generator, 300, 32)
    values[10:200] = np.nan
    check(values, units(generator, 3, 32), 20, block=64)
    check(values, units(generator, 3, 32), 250, block=64)


def test_it_searches_what_is_mapped_from_a_file(tmp_path):
    generator = np.random.default_rng(3)
    values = units(generator, 2000, 64)
    np.save(tmp_path / "values.npy", values)
    check(np.load(tmp_path / "values.npy", mmap_mode="r"), units(generator, 3, 64), 10, block=700)


def test_no_queries_no_rows_and_mistakes():
    values = units(np.random.default_rng(4), 10, 8)
    assert search(values, values[:0], 3).rows.shape == (0, 3)
    assert search(values[:0], values, 3).rows.shape == (10, 0)
    with pytest.raises(ValueError, match="at least 1"):
        search(values, values, 0)
    with pytest.raises(ValueError, match="have 7 numbers each and the rows 8"):
        search(values, values[:, :7], 1)

"""Texts are batched by tokens: each comes back in its place, and short ones do not pay for long ones."""

import itertools

import numpy as np
import pytest

from altclip_jax import AltCLIP
from altclip_jax.inference.encoder import TokenBatching


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_each_text_is_in_one_batch_that_holds_it(clip, steady, seed):
    generator = np.random.default_rng(seed)
    lengths = np.minimum(generator.geometric(0.05, generator.integers(0, 3000)) + 2, 77).tolist()
    batching = TokenBatching(clip.processor.tokenizer, 77, tokens=1024, steady=steady, multiple=3)
    batches = list(batching.batches(lengths))
    assert sorted(np.concatenate([np.zeros(0, int), *(batch.places for batch in batches)])) == list(range(len(lengths)))
    for batch in batches:
        assert 0 < len(batch.places) <= batch.rows
        assert batch.rows % 3 == 0
        assert max(lengths[place] for place in batch.places) <= batch.length
        assert not steady or (batch.rows, batch.length) in [(rows, length) for length, rows in batching.full.items()]


def test_short_texts_do_not_wait_for_a_long_one(clip):
    # 100 short texts fill no batch of 256; beside the long one they would cost 100 x 77 tokens
    lengths = [5] * 100 + [77]
    batching = TokenBatching(clip.processor.tokenizer, 77, tokens=2048, steady=True)
    assert [(len(batch.places), batch.length) for batch in batching.batches(lengths)] == [(100, 8), (1, 77)]
    # 250 of 9 tokens and 3 of 8: these 3 are better off one bucket higher than alone
    shapes = [(len(b.places), b.length) for b in batching.batches([8] * 3 + [9] * 250)]
    assert shapes == [(128, 16), (125, 16)]


def test_few_texts_of_several_lengths_share_a_batch(clip):
    # each batch reads all parameters: eight texts are not worth three of them, sixty are
    batching = TokenBatching(clip.processor.tokenizer, 77)
    assert [(len(b.places), b.rows, b.length) for b in batching.batches([7, 12, 15, 5, 16, 20, 22, 9])] == [(8, 8, 24)]
    many = [(len(b.places), b.length) for b in batching.batches([8] * 30 + [48] * 30)]
    assert many == [(30, 8), (30, 48)]


def test_what_is_left_over_is_joined_in_the_way_that_is_least_work(clip):
    batching = TokenBatching(clip.processor.tokenizer, 77, tokens=256)
    generator = np.random.default_rng(1)
    for _ in range(20):
        lengths = generator.integers(2, 77, generator.integers(1, 9)).tolist()
        used = sorted({min(bucket for bucket in batching.full if bucket >= length) for length in lengths})

        def work(cut, lengths=lengths, used=used):
            """Returns the work of batches that end with those lengths that `cut` names."""
            total, start = 0, 0
            for end in [bucket for bucket, here in zip(used, [*cut, True], strict=True) if here]:
                texts = sum(start < length <= end for length in lengths)
                total += batching._work(texts, end)
                start = end
            return total

        # few of each length, so that none fills a batch alone
        if all(sum(length <= bucket for length in lengths) < batching.full[bucket] for bucket in used):
            least = min(work(cut) for cut in itertools.product([False, True], repeat=len(used) - 1))
            found = sum(batch.rows * batch.length + 128 for batch in batching.batches(lengths))
            assert found == least


def test_less_is_computed_than_in_the_order_they_come(clip):
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(2.6, 0.6, 4000).astype(int), 4, 77)
    batching = TokenBatching(clip.processor.tokenizer, 77, tokens=2048, steady=True)
    tokens = sum(batch.rows * batch.length for batch in batching.batches(lengths.tolist()))
    in_order = sum(64 * lengths[start : start + 64].max() for start in range(0, 4000, 64))
    assert tokens < 1.35 * lengths.sum()
    assert in_order > 2 * tokens


@pytest.mark.parametrize("side", ["right", "left"])
def test_embeddings_come_back_in_order(clip, side, monkeypatch):
    monkeypatch.setattr(clip.processor.tokenizer, "padding_side", side)
    texts = [f"{'cat ' * (number * 7 % 13)}{number}" for number in range(90)]
    rows = clip.encode_text(texts, batch_size=8)
    single = np.concatenate([clip.encode_text(text) for text in texts])
    np.testing.assert_allclose(rows, single, atol=2e-6)

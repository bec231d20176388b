"""Texts batched by their tokens: short ones are not padded to the length of long ones, and their order comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32

from altclip_jax.inference.encoders import Encoding, in_flight, length_buckets, padded_size
from altclip_jax.processing.tokenizer import BaseTokenizer

Encode = Callable[[np.ndarray, np.ndarray], Encoding]
_WINDOW = 16_384  # texts that are sorted together: memory does not grow with their number
_BATCH = 128  # tokens whose work is what a batch costs beside its tokens: all parameters are read once for each


class TokenBatch(NamedTuple):
    """Texts that the model sees at once, padded to `length` tokens and `rows` rows."""

    places: Int[np.ndarray, " texts"]
    rows: int
    length: int


class TokenBatching:
    """Cuts tokenized texts into batches of about the same number of tokens, each for texts of similar length.

    What does not fill a batch of its length goes with the rest of longer ones where that is less work than batches of
    their own.
    """

    def __init__(
        self, tokenizer: BaseTokenizer, limit: int, *, tokens: int = 2048, steady: bool = False, multiple: int = 1
    ):
        """Decides the shapes.

        Args:
            tokenizer: Of the model.
            limit: To how many tokens texts are cut.
            tokens: Of a batch, padding included.
            steady: Fill every batch up to the full number of rows, so that each length has one shape alone; otherwise
                to a power of two, which suits few texts.
            multiple: Of which the number of rows is one, such as the number of devices.

        Raises:
            ValueError: no token, or no row.
        """
        if min(limit, tokens, multiple) < 1:
            raise ValueError(f"limit={limit}, tokens={tokens} and multiple={multiple} must be at least 1.")
        self._tokenizer, self._limit, self._steady, self._multiple = tokenizer, limit, steady, multiple
        # powers of two rows, so that few shapes are compiled
        self._full = {
            length: self._whole(1 << (tokens // length).bit_length() >> 1) for length in length_buckets(limit)
        }

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The (rows, length) of full batches; if they are steady, of all."""
        return [(rows, length) for length, rows in self._full.items()]

    def batches(self, lengths: Sequence[int]) -> Iterator[TokenBatch]:
        """Yields batches, full ones first, in which each text has its place once.

        Args:
            lengths: The tokens of each text, at most the limit.
        """
        sizes = np.asarray(lengths, np.int64)
        order = np.argsort(sizes, kind="stable")
        ends = np.searchsorted(sizes[order], list(self._full), "right").tolist()
        rests: list[np.ndarray] = []
        for (length, full), (start, end) in zip(self._full.items(), pairwise([0, *ends]), strict=True):
            whole = start + (end - start) // full * full
            yield from self._cut(order[start:whole], length)
            rests.append(order[whole:end])
        for first, last in self._joined([len(rest) for rest in rests]):
            yield from self._cut(np.concatenate(rests[first : last + 1]), list(self._full)[last])

    def _cut(self, places: Int[np.ndarray, " texts"], length: int) -> Iterator[TokenBatch]:
        full = self._full[length]
        for start in range(0, len(places), full):
            part = places[start : start + full]
            yield TokenBatch(part, self._rows(len(part), full), length)

    def _joined(self, counts: Sequence[int]) -> list[tuple[int, int]]:
        """Returns which neighbouring lengths, first and last, share batches, so that the work is least.

        None do where padding comes first: a text's first token is pooled, which then is padding or is not by its length
        alone, whatever else is in the batch.
        """
        best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]  # for so many of the lengths
        alone = self._tokenizer.padding_side == "left"
        for last, length in enumerate(self._full):
            ways = []
            for first in range(last if alone else 0, last + 1):
                work, joined = best[first]
                texts = sum(counts[first : last + 1])
                own = [(first, last)] if texts else []
                ways.append((work + self._work(texts, length), [*joined, *own]))
            best.append(min(ways, key=lambda way: way[0]))
        return best[-1][1]

    def _work(self, texts: int, length: int) -> int:
        """Returns what texts cost that are padded to a length."""
        full = self._full[length]
        whole, rest = divmod(texts, full)
        return whole * (full * length + _BATCH) + (self._rows(rest, full) * length + _BATCH if rest else 0)

    def _rows(self, texts: int, full: int) -> int:
        return full if self._steady else self._whole(padded_size(texts, full))

    def encode(
        self, encode: Encode, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Iterator[Float32[np.ndarray, "rows projection"]]:
        """Yields the embeddings of the texts in their order, many at a time.

        Args:
            encode: Begins to encode (input_ids, attention_mask).
            texts: In any order.
            progress: Called with the number of rows done.
        """
        for start in range(0, len(texts), _WINDOW):
            window = texts[start : start + _WINDOW]
            ids = self._tokenizer(list(window), truncation=True, max_length=self._limit)["input_ids"]
            planned = list(self.batches([len(row) for row in ids]))
            found = in_flight(encode(*self._arrays(ids, batch)) for batch in planned)
            rows: np.ndarray | None = None
            for batch, values in zip(planned, found, strict=True):
                if rows is None:
                    rows = np.empty((len(window), values.shape[1]), np.float32)
                rows[batch.places] = values[: len(batch.places)]
                if progress:
                    progress(len(batch.places))
            assert rows is not None
            yield rows

    def _arrays(
        self, ids: Sequence[Sequence[int]], batch: TokenBatch
    ) -> tuple[Int32[np.ndarray, "rows length"], Int32[np.ndarray, "rows length"]]:
        """Returns input_ids and attention_mask of a batch; rows beyond the texts repeat the last."""
        shape = (batch.rows, batch.length)
        values, mask = np.full(shape, self._tokenizer.pad_token_id, np.int32), np.zeros(shape, np.int32)
        right = self._tokenizer.padding_side == "right"
        last = len(batch.places) - 1
        for row in range(batch.rows):
            text = ids[batch.places[min(row, last)]]
            where = slice(0, len(text)) if right else slice(batch.length - len(text), batch.length)
            values[row, where] = text
            mask[row, where] = 1
        return values, mask

    def _whole(self, rows: int) -> int:
        return -(-max(rows, 1) // self._multiple) * self._multiple

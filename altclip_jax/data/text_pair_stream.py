"""Pairs of texts as arrays: a function of (seed, step, row)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Integer

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import HostBatch, Loaded, Place, Tokenizer, one_row, tokenized
from altclip_jax.data.draws import Draws
from altclip_jax.data.samples import Source, TextPair
from altclip_jax.data.sources import Mixture
from altclip_jax.data.walk import Share, walk


class TextPairStream:
    """Texts that the teacher reads with their translations, which the student reads.

    Arrays: input_ids and attention_mask of the translations, int32 (rows, max_length); teacher_input_ids and
    teacher_attention_mask, int32 (rows, teacher_max_length); example, int64 (rows,), the id of the pair over all
    sources.
    """

    def __init__(
        self,
        sources: Mixture[Source[TextPair]],
        teacher_tokenizer: Tokenizer | None,
        student_tokenizer: Tokenizer,
        *,
        seed: int,
        max_length: int,
        teacher_max_length: int = 77,
    ):
        """Lays out the order.

        Args:
            sources: From `open_sources(specs, "text_pairs")`.
            teacher_tokenizer: None: there are no teacher arrays, because the teacher's embeddings are known.
            student_tokenizer: Called as `AltCLIPTokenizer` is, and so is the teacher's.
            seed: Decides the order.
            max_length: The student's texts are cut and padded to this many tokens.
            teacher_max_length: The teacher's likewise.
        """
        self._draws = Draws(sources, seed)
        self._teacher, self._student = teacher_tokenizer, student_tokenizer
        self._max_length, self._teacher_max_length = max_length, teacher_max_length

    @property
    def mixture(self) -> Mixture[Source[TextPair]]:
        """Where the pairs come from."""
        return self._draws.mixture

    def prepare(self, step: int, row: int, batch_size: int) -> dict[str, np.ndarray]:
        """Returns the arrays of one row of a step's global batch, without an axis of rows.

        Raises:
            SampleError: neither its pair nor any in its place can be used.
        """
        return one_row(self, step, row, batch_size)

    def plan(self, step: int, rows: Integer[np.ndarray, " rows"], batch_size: int) -> list[Place]:
        """Returns which pairs stand in rows of a step's global batch."""
        return self._draws.plan(step, rows, batch_size)

    def load(self, place: Place) -> Loaded:
        """Reads a pair, or another one in its place."""
        return self._draws.load(place, self._drawn)

    def collate(self, rows: Sequence[Loaded]) -> dict[str, np.ndarray]:
        """Makes arrays of loaded rows."""
        return {**self._collate_sources(rows), **self._collate_targets(rows)}

    def all_examples(
        self, batch_size: int, *, threads: int = 4, bad_samples: BadSamples | None = None, share: Share = (0, 1)
    ) -> Iterator[HostBatch]:
        """Yields each pair once."""
        return self._walk(self.collate, batch_size, threads, bad_samples, share)

    def all_sources(
        self,
        batch_size: int,
        *,
        threads: int = 4,
        bad_samples: BadSamples | None = None,
        share: Share = (0, 1),
        but: Bool[np.ndarray, " pairs"] | None = None,
    ) -> Iterator[HostBatch]:
        """Yields each pair once, but only what the teacher reads: teacher arrays and example.

        Args:
            batch_size: Rows of a batch; the last is smaller.
            threads: How many read.
            bad_samples: Is told the bad ones.
            share: Of the pairs, see `walk`.
            but: By their ids, the pairs that are left out; what changes in it later has no effect.

        Raises:
            ValueError: there is no teacher's tokenizer.
        """
        if self._teacher is None:
            raise ValueError("This stream was made without a teacher_tokenizer, so it has no sources for a teacher.")
        return self._walk(self._collate_sources, batch_size, threads, bad_samples, share, but)

    def _drawn(self, place: Place) -> Loaded:
        return self._loaded((place.source, place.sample))

    def _loaded(self, job: tuple[int, int]) -> Loaded:
        pair = self.mixture.sources[job[0]].read(job[1])
        values = {"source": pair.source, "target": pair.target}
        return Loaded(self._draws.example(*job), pair.name, pair.language, values)

    def _collate_sources(self, rows: Sequence[Loaded]) -> dict[str, np.ndarray]:
        arrays = {"example": np.array([row.example for row in rows], np.int64)}
        if self._teacher is None:
            return arrays
        return arrays | tokenized(self._teacher, _texts(rows, "source"), self._teacher_max_length, "teacher_")

    def _collate_targets(self, rows: Sequence[Loaded]) -> dict[str, np.ndarray]:
        return dict(tokenized(self._student, _texts(rows, "target"), self._max_length))

    def _walk(
        self,
        collate: Callable[[Sequence[Loaded]], dict[str, np.ndarray]],
        batch_size: int,
        threads: int,
        bad_samples: BadSamples | None,
        share: Share,
        but: Bool[np.ndarray, " pairs"] | None = None,
    ) -> Iterator[HostBatch]:
        left_out = None if but is None else but.copy()  # jobs are looked at as they are needed
        everything = (
            (place, index) for place, source in enumerate(self.mixture.sources) for index in range(len(source))
        )
        jobs = (job for job in everything if left_out is None or not left_out[self._draws.example(*job)])
        return walk(
            self.mixture,
            jobs,
            lambda job: [self._loaded(job)],
            collate,
            lambda job: self._draws.example(*job),
            batch_size,
            threads=threads,
            bad_samples=bad_samples,
            share=share,
        )


def _texts(rows: Sequence[Loaded], side: str) -> list[str]:
    return [(row.values or {})[side] for row in rows]

"""Everything once and in order, for evaluation and for features that are computed ahead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.data.batches import Ahead, Fault, HostBatch, Loaded, cut_batches, host_batch, keep_tokenizers_single
from altclip_jax.data.samples import SampleError
from altclip_jax.data.sources import Mixture

Job = TypeVar("Job")
Share = tuple[int, int]  # (which, of how many): every n-th job, for one of n processes


def walk(
    mixture: Mixture[Any] | None,
    jobs: Iterable[Job],
    load: Callable[[Job], Sequence[Loaded]],
    collate: Callable[[Sequence[Loaded]], dict[str, np.ndarray]],
    example: Callable[[Job], int],
    batch_size: int,
    *,
    threads: int = 4,
    bad_samples: BadSamples | None = None,
    share: Share = (0, 1),
) -> Iterator[HostBatch]:
    """Yields batches of what `load` gives for each job, without bad samples; the last is smaller.

    Args:
        mixture: What is walked over: what was found damaged when it was opened is told, too. None: that is told.
        jobs: In order.
        load: May raise SampleError.
        collate: Makes arrays of rows.
        example: The id of a job's sample.
        batch_size: Rows of a batch.
        threads: How many load.
        bad_samples: Is told the bad ones.
        share: Of the jobs.

    Raises:
        TooManyBadSamples: `bad_samples` allows no more.
    """
    keep_tokenizers_single()
    bad = BadSamples() if bad_samples is None else bad_samples
    if mixture is not None:
        bad.record_faults(mixture.faults, len(mixture))
    rows: list[Loaded] = []
    step = 0

    def attempt(job: Job) -> Sequence[Loaded] | Fault:
        try:
            return load(job)
        except SampleError as error:
            return Fault(example(job), error)

    own = itertools.islice(jobs, share[0], None, share[1])
    ahead = Ahead(cut_batches(own, batch_size), attempt, list, threads=threads, ahead=2)
    try:
        for done, _ in ahead:
            faults = [item for item in done if isinstance(item, Fault)]
            good = [row for item in done if not isinstance(item, Fault) for row in item]
            bad.record([row.example for row in good] + [fault.example for fault in faults], [f.error for f in faults])
            rows += good
            while len(rows) >= batch_size:
                yield host_batch(step, rows[:batch_size], collate(rows[:batch_size]))
                rows, step = rows[batch_size:], step + 1
        if rows:
            yield host_batch(step, rows, collate(rows))
    finally:
        ahead.close()

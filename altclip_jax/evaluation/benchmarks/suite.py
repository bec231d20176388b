"""The benchmarks of the paper: run those that are there, and set them beside what was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from altclip_jax.data.bad_samples import BadSamples
from altclip_jax.distributed import together
from altclip_jax.evaluation.benchmarks.catalogue import BENCHMARKS, Benchmark, Opened
from altclip_jax.evaluation.benchmarks.published import Reference, pictures_of, reference
from altclip_jax.evaluation.collection import Collection
from altclip_jax.evaluation.retrieval_run import RetrievalRun, evaluate_retrieval
from altclip_jax.evaluation.zero_shot_run import ZeroShotRun, evaluate_zero_shot
from altclip_jax.inference.pipeline import AltCLIP
from altclip_jax.sweep import Known, Progress

Run = RetrievalRun | ZeroShotRun


@dataclass(frozen=True)
class Comparison:
    """Our numbers on a benchmark in a language beside what was published, all in %.

    Attributes:
        benchmark: As in published.toml.
        language: Of its texts.
        pictures: How many there were.
        expected: How many the benchmark has; with others the numbers do not compare. None if it is not known.
        ours: {metric: value}.
        published: What was published.
    """

    benchmark: str
    language: str
    pictures: int
    expected: int | None
    ours: Mapping[str, float]
    published: Reference


@dataclass(frozen=True)
class Outcome:
    """What became of the benchmarks.

    Attributes:
        runs: By benchmark.
        comparisons: For each of their languages.
        absent: By benchmark, the files that would have told that it is there.
        failed: By benchmark, why.
    """

    runs: dict[str, Run]
    comparisons: tuple[Comparison, ...]
    absent: dict[str, tuple[str, ...]]
    failed: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """Returns the numbers as plain values for JSON."""
        return {
            "task": "paper",
            "comparisons": [
                {
                    "benchmark": row.benchmark,
                    "language": row.language,
                    "pictures": row.pictures,
                    "published_pictures": row.expected,
                    "ours": dict(row.ours),
                    "published_model": row.published.model,
                    "published": dict(row.published.values),
                    "sources": dict(row.published.sources),
                    "difference": {metric: row.ours[metric] - value for metric, value in row.published.values.items()},
                }
                for row in self.comparisons
            ],
            "runs": {name: run.summary() for name, run in self.runs.items()},
            "absent": {name: list(signs) for name, signs in self.absent.items()},
            "failed": self.failed,
        }


def run_suite(
    clip: AltCLIP,
    data: Path,
    names: Sequence[str] | None = None,
    *,
    batch_size: int = 64,
    begin: Callable[[str, int], Progress] = lambda name, total: lambda done: None,
) -> Outcome:
    """Runs benchmarks; one that fails does not keep the others from running, and no picture is embedded twice.

    Args:
        clip: The model.
        data: Has the benchmarks in folders of their own.
        names: Of those that shall run; None: all that are there.
        batch_size: Rows that the model sees at once.
        begin: Called with a benchmark and how much there is to embed; what it returns is called with what is done.

    Raises:
        FileNotFoundError: none of them is there.
        ValueError: a name is none of theirs.
    """
    wanted = _named(names)
    found = {benchmark: sign for benchmark in wanted if (sign := benchmark.sign(data)) is not None}
    if not found:
        looked_for = ", ".join(sign for benchmark in wanted for sign in benchmark.signs)
        raise FileNotFoundError(f"{data} has none of the benchmarks: expected at least one of {looked_for}.")
    known: Known = {}
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for benchmark, sign in found.items():
        try:
            opened = together(partial(benchmark.open, data, sign))
            runs[benchmark.name] = _run(clip, opened, batch_size, partial(begin, benchmark.name), known)
        except (ValueError, OSError) as error:
            failed[benchmark.name] = str(error)
    comparisons = [comparison for name, run in runs.items() for comparison in _compared(name, run)]
    absent = {benchmark.name: benchmark.signs for benchmark in wanted if benchmark not in found}
    return Outcome(runs, tuple(comparisons), absent, failed)


def _named(names: Sequence[str] | None) -> list[Benchmark]:
    unknown = sorted({*(names or ())} - {benchmark.name for benchmark in BENCHMARKS})
    if unknown:
        known = ", ".join(benchmark.name for benchmark in BENCHMARKS)
        raise ValueError(f"There is no benchmark {', '.join(unknown)}: expected some of {known}.")
    return [benchmark for benchmark in BENCHMARKS if names is None or benchmark.name in names]


def _run(clip: AltCLIP, opened: Opened, batch_size: int, begin: Callable[[int], Progress], known: Known) -> Run:
    options: dict[str, Any] = {"batch_size": batch_size, "known": known}
    bad = BadSamples()
    if isinstance(opened, Collection):
        bad.record(range(len(opened.pictures)), [])
        total = len(opened.pictures) + len({caption.text for caption in opened.captions})
        return evaluate_retrieval(clip, opened, bad, progress=begin(total), **options)
    bad.record(range(len(opened.labelled)), [])
    return evaluate_zero_shot(clip, *opened, bad, progress=begin(len(opened.labelled)), **options)


def _compared(name: str, run: Run) -> list[Comparison]:
    count = len(run.collection.pictures) if isinstance(run, RetrievalRun) else len(run.pictures)
    return [
        Comparison(
            benchmark=name,
            language=language,
            pictures=count,
            expected=pictures_of(name),
            ours={metric: 100 * value for metric, value in own.items()},
            published=reference(name, language),
        )
        for language, own in run.metrics().items()
    ]

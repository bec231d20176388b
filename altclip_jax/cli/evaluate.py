"""evaluate: what a model can do, in numbers."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altclip_jax.cli.command import (
    add_command,
    add_model_options,
    encoding_progress,
    load_model,
    positive,
    print_json,
    several_encodings,
)
from altclip_jax.cli.processes import add_process_options, join

if TYPE_CHECKING:
    from altclip_jax.inference.pipeline import AltCLIP


def add_commands(commands: Any) -> None:
    """Adds the commands of this file to the subparsers of `altclip`."""
    text = "measure a model on data: retrieval, zero-shot, or the benchmarks of the paper"
    evaluate = commands.add_parser("evaluate", help=text, description=text.capitalize() + ".")
    tasks = evaluate.add_subparsers(title="tasks", required=True, metavar="TASK")

    retrieval = add_command(
        tasks,
        "retrieval",
        _in_all_processes(_retrieval),
        "find pictures by captions and captions by pictures, for each language",
        epilog="A caption is found if a picture it belongs to is among the first k of all pictures; a picture, if one"
        " of its captions is among the first k of that language. Equal scores count against the model.",
    )
    retrieval.add_argument(
        "data", nargs="+", metavar="DATA", help="JSONL, CSV, TSV, webdataset tars or parquet; files or patterns"
    )
    retrieval.add_argument("--language", nargs="+", metavar="LANG", help="only captions in these; default: all")
    _add_common(retrieval)

    zero_shot = add_command(
        tasks,
        "zero-shot",
        _in_all_processes(_zero_shot),
        "tell pictures apart by the names of their classes, in each language",
        epilog="Of equal scores the class that stands first in the file counts as the larger.",
    )
    zero_shot.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="a folder with a sub-folder per class; JSONL, CSV or TSV with image and label; webdataset tars with .cls",
    )
    zero_shot.add_argument(
        "--classes", required=True, type=Path, metavar="FILE", help="JSON or TOML: names of the classes by language"
    )
    zero_shot.add_argument(
        "--templates",
        type=Path,
        metavar="FILE",
        help="JSON or TOML: prompts with one {} each by language, averaged per class; default: the bare name",
    )
    zero_shot.add_argument("--language", nargs="+", metavar="LANG", help="only names in these; default: all")
    _add_common(zero_shot)

    paper = add_command(
        tasks,
        "paper",
        _in_all_processes(_paper),
        "run the public benchmarks that are there, and compare with what was published for AltCLIP",
        epilog="Exit code 1 if a benchmark could not be run; the others are.",
    )
    paper.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="the benchmarks, each in its folder: docs/evaluation.md"
    )
    paper.add_argument("--benchmark", nargs="+", metavar="NAME", help="only these; default: all that are there")
    _add_common(paper)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots and examples, too")
    parser.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="on all devices together; default: %(default)s"
    )
    for axis in ("fsdp", "tensor"):
        parser.add_argument(f"--{axis}", type=positive, default=1, metavar="N", help="devices that share parameters")
    add_process_options(parser)
    add_model_options(parser)


def _retrieval(options: argparse.Namespace) -> None:
    from altclip_jax.cli import evaluation_tables
    from altclip_jax.data.bad_samples import BadSamples
    from altclip_jax.evaluation.report import reports
    from altclip_jax.evaluation.retrieval_run import evaluate_retrieval, open_collection

    _keep_inputs(options, *options.data)
    bad = BadSamples()
    collection = open_collection(options.data, options.language, bad)
    clip = _load_everywhere(options)
    total = len(collection.pictures) + len({caption.text for caption in collection.captions})
    with encoding_progress(total) as done:
        run = evaluate_retrieval(clip, collection, bad, batch_size=options.batch_size, progress=done)
    _tell(
        options,
        {"data": options.data, **run.summary()},
        evaluation_tables.print_retrieval,
        lambda: reports.retrieval_report(run, " ".join(options.data)),
    )


def _zero_shot(options: argparse.Namespace) -> None:
    from altclip_jax.cli import evaluation_tables
    from altclip_jax.data.bad_samples import BadSamples
    from altclip_jax.evaluation.classes import read_classes, read_templates
    from altclip_jax.evaluation.labelled import open_labelled
    from altclip_jax.evaluation.report import reports
    from altclip_jax.evaluation.zero_shot_run import evaluate_zero_shot

    _keep_inputs(options, *options.data, options.classes, *filter(None, [options.templates]))
    bad = BadSamples()
    classes = read_classes(options.classes).limited(options.language)
    templates = read_templates(options.templates) if options.templates else {}
    labelled = open_labelled(options.data, bad)
    clip = _load_everywhere(options)
    with encoding_progress(len(labelled)) as done:
        run = evaluate_zero_shot(clip, labelled, classes, templates, bad, batch_size=options.batch_size, progress=done)
    _tell(
        options,
        {"data": options.data, **run.summary()},
        evaluation_tables.print_zero_shot,
        lambda: reports.zero_shot_report(run, " ".join(options.data)),
    )


def _paper(options: argparse.Namespace) -> int:
    from altclip_jax.cli import evaluation_tables
    from altclip_jax.evaluation.benchmarks.suite import run_suite
    from altclip_jax.evaluation.report import reports

    clip = _load_everywhere(options)
    with several_encodings() as begin:
        outcome = run_suite(clip, options.data, options.benchmark, batch_size=options.batch_size, begin=begin)
    _tell(
        options,
        {"data": str(options.data), "model": clip.name, **outcome.summary()},
        evaluation_tables.print_paper,
        lambda: reports.paper_report(outcome, clip.name, str(options.data)),
    )
    return 1 if outcome.failed else 0


def _in_all_processes(evaluate: Callable[[argparse.Namespace], int | None]) -> Callable[..., int | None]:
    """Returns a command that joins the processes which its options name."""

    def run(options: argparse.Namespace) -> int | None:
        with join(options):
            return evaluate(options)

    return run


def _load_everywhere(options: argparse.Namespace) -> AltCLIP:
    """Loads the model onto all devices of all processes."""
    import jax

    from altclip_jax.parallel import make_mesh

    one = jax.device_count() == options.fsdp == options.tensor == 1
    return load_model(options, mesh=None if one else make_mesh(fsdp=options.fsdp, tensor=options.tensor))


def _keep_inputs(options: argparse.Namespace, *patterns: str | Path) -> None:
    """Checks that the report will not take the place of what is measured, before that takes its time."""
    from altclip_jax.data.files import find_files
    from altclip_jax.files.ownership import keep_apart

    for pattern in patterns if options.html is not None else ():
        with contextlib.suppress(FileNotFoundError):  # whoever opens them says which are missing
            keep_apart(find_files(pattern), options.html)


def _tell(
    options: argparse.Namespace,
    summary: dict[str, Any],
    print_table: Callable[[dict[str, Any]], None],
    report: Callable[[], bytes],
) -> None:
    from altclip_jax.distributed import is_first
    from altclip_jax.files.json_file import write_bytes

    if not is_first():  # what follows is written once
        return
    if options.json:
        print_json(summary)
    else:
        print_table(summary)
    if options.html is not None:
        write_bytes(options.html, report())
        if not options.json:
            print(f"report: {options.html}")

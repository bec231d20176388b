"""embed: unit embeddings of a few things to a file, or of a whole corpus to a folder."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altclip_jax.cli.answering import add_images, find_images
from altclip_jax.cli.command import add_command, add_model_options, encoding_progress, load_model, positive, print_json
from altclip_jax.cli.processes import add_process_options, join

if TYPE_CHECKING:
    from altclip_jax.corpus.embed import Pace
    from altclip_jax.corpus.items import Corpus
    from altclip_jax.inference.pipeline import AltCLIP

_EPILOG = """With an output that ends in .npz or .safetensors: the pictures and --texts, into that file at once. With a
folder as output: everything that IMAGE names, in parts that survive a kill (docs/corpus.md)."""


def add_commands(commands: Any) -> None:
    """Adds the commands of this file to the subparsers of `altclip`."""
    embed = add_command(
        commands, "embed", _embed, "write unit embeddings of pictures and texts to a file, or to a folder", _EPILOG
    )
    add_images(
        embed,
        nargs="*",
        help_text="picture files, folders or glob patterns; into a folder also lists (.jsonl .csv .tsv), webdataset"
        " .tar, .parquet, captions in a .txt, a line each, or - for captions on standard input",
    )
    embed.add_argument("--texts", nargs="+", default=[], metavar="TEXT", help="texts, in any language; into a file")
    embed.add_argument("--output", required=True, metavar="PATH", help="an .npz or .safetensors file, or a folder")
    group = embed.add_argument_group("into a folder")
    group.add_argument("--resume", action="store_true", help="go on with what an earlier run has done")
    group.add_argument("--only", choices=["images", "texts"], help="leave out captions, or pictures")
    group.add_argument(
        "--part-items", type=positive, default=4096, metavar="N", help="items of a part; default: %(default)s"
    )
    group.add_argument(
        "--form", choices=["npy", "safetensors", "parquet"], default="npy", help="of the parts; default: %(default)s"
    )
    group.add_argument(
        "--rows", choices=["float32", "float16"], default="float32", help="dtype of the rows; default: %(default)s"
    )
    group.add_argument(
        "--batch-size", type=positive, default=32, metavar="N", help="pictures at once; default: %(default)s"
    )
    group.add_argument("--tokens", type=positive, default=2048, metavar="N", help="of captions at once; default: 2048")
    group.add_argument(
        "--threads", type=positive, default=4, metavar="N", help="that read and decode; default: %(default)s"
    )
    for axis in ("fsdp", "tensor"):
        group.add_argument(f"--{axis}", type=positive, default=1, metavar="N", help="devices that share parameters")
    for key in ("image", "caption", "language"):
        group.add_argument(f"--{key}-key", metavar="NAME", help=f"what lists call the {key}")
    add_process_options(embed)
    add_model_options(embed)


def _embed(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if output.suffix and not output.is_dir() and not options.output.endswith("/"):
        _embed_to_file(options, output)
        return
    if options.texts:
        raise ValueError(
            "--texts go into an .npz or .safetensors file. Into a folder captions come from a .txt, a line each, or"
            " from standard input: name the file, or -."
        )
    if options.processes is not None and options.coordinator is None and options.distributed is None:
        share = _independent(options)
        _embed_share(options, output, share)
    else:
        with join(options):
            import jax

            share = jax.process_index(), jax.process_count()
            _embed_share(options, output, share)
    _tell(options, output, share)


def _independent(options: argparse.Namespace) -> tuple[int, int]:
    """Returns which of several processes this is that need not know each other."""
    process, processes = options.process, options.processes
    if process is None or not 0 <= process < processes:
        raise ValueError(f"Say with --process which of the {processes} this is, from 0 to {processes - 1}.")
    return process, processes


def _embed_share(options: argparse.Namespace, folder: Path, share: tuple[int, int]) -> None:
    from altclip_jax.corpus.embed import Settings, embed_corpus
    from altclip_jax.parallel import local_mesh

    settings = Settings(
        kinds=("images", "texts") if options.only is None else (options.only,),
        part_items=options.part_items,
        batch_size=options.batch_size,
        tokens=options.tokens,
        threads=options.threads,
        form=options.form,
        stored=options.rows,
    )
    corpus = _open(options, folder, share)
    clip: AltCLIP = load_model(options)
    try:
        with _pace_shown(len(corpus) // share[1]) as progress:
            embed_corpus(
                clip,
                corpus,
                folder,
                settings,
                resume=options.resume or share[1] > 1,  # the others may have begun it
                share=share,
                mesh=local_mesh(options.fsdp, options.tensor),
                progress=progress,
                say=lambda text: print(f"altclip: {text}", file=sys.stderr),
            )
    except KeyboardInterrupt:
        again = shlex.join(sys.argv[1:] + ([] if options.resume else ["--resume"]))
        print(f"altclip: what is done stays; to go on:\n  altclip {again}", file=sys.stderr)
        raise


def _open(options: argparse.Namespace, folder: Path, share: tuple[int, int]) -> Corpus:
    """Opens what is named; standard input becomes a file of the store, which a run that goes on reads again."""
    from altclip_jax.corpus.items import open_corpus
    from altclip_jax.corpus.spool import forget, spooled

    inputs = list(options.images)
    if "-" in inputs:
        if share[1] > 1:
            raise ValueError(
                "Several processes cannot share standard input: write the captions to a file, and name it."
            )
        if not options.resume:
            forget(folder)
        inputs = [str(spooled(folder, sys.stdin.buffer)) if given == "-" else given for given in inputs]
    keys = {f"{key}_key": getattr(options, f"{key}_key") for key in ("image", "caption", "language")}
    return open_corpus(inputs, **keys)


def _tell(options: argparse.Namespace, folder: Path, share: tuple[int, int]) -> None:
    """Says what is there now, once, and lists what is unreadable when all is there."""
    from altclip_jax.corpus.store import Store

    store = Store.open(folder)
    unreadable, missing, total = store.list_unreadable(), store.missing(), store.total()
    if share[0] and options.coordinator is not None:
        return
    if options.json:
        told = {**total._asdict(), "width": store.description.width, "missing_parts": len(missing)}
        print_json({"output": str(folder), **told, "unreadable_list": unreadable and str(unreadable)})
        return
    print(f"{folder}: {total.images:,} pictures and {total.texts:,} texts, {store.description.width} numbers each")
    if missing:
        print(f"  {len(missing)} of {store.parts} parts are still to come from other processes")
    if unreadable:
        print(f"  {total.unreadable + len(store.description.faults):,} could not be read: {unreadable}")


@contextlib.contextmanager
def _pace_shown(total: int) -> Iterator[Callable[[Pace], None]]:
    """A bar on standard error with the pace of the run, if someone is watching."""
    if not sys.stderr.isatty():
        yield lambda pace: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("", total=total, pace="")
        yield lambda pace: shown.update(task, completed=pace.done, pace=str(pace))


def _embed_to_file(options: argparse.Namespace, file: Path) -> None:
    from altclip_jax.files.ownership import keep_apart
    from altclip_jax.inference.embedding_file import write_embeddings

    if not options.images and not options.texts:
        raise ValueError("There is nothing to embed: name pictures, or give texts with --texts.")
    if options.resume:
        raise ValueError(f"--resume is for a folder of parts, and {file} is one file: name a folder without an ending.")
    files = find_images(options.images)
    keep_apart(files, file)
    clip = load_model(options)
    with encoding_progress(len(files) + len(options.texts)) as done:
        images, texts = clip.encode_images(files, progress=done), clip.encode_text(options.texts, progress=done)
    names = [str(file) for file in files]
    write_embeddings(file, images=images, image_names=names, texts=texts, text_names=options.texts)
    if options.json:
        print_json({"output": str(file), "images": list(images.shape), "texts": list(texts.shape)})
        return
    print(f"{file}: {len(images)} pictures and {len(texts)} texts, {images.shape[1]} numbers each")

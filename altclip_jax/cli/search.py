"""index, search: a corpus that was embedded, asked by text or picture."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altclip_jax.cli.command import add_command, add_model_options, load_model, positive, print_json

if TYPE_CHECKING:
    from altclip_jax.corpus.approximate import Approximation
    from altclip_jax.corpus.index import Index
    from altclip_jax.corpus.search import Hits
    from altclip_jax.corpus.store import Kind

_OWN = "index"  # the folder of an index within its store


def add_commands(commands: Any) -> None:
    """Adds the commands of this file to the subparsers of `altclip`."""
    index = add_command(commands, "index", _index, "make embeddings of a corpus ready to be searched")
    index.add_argument("store", type=Path, metavar="STORE", help="the folder that `altclip embed` has written")
    index.add_argument("--output", type=Path, metavar="DIR", help=f"where; default: STORE/{_OWN}")
    index.add_argument(
        "--approximate",
        nargs="?",
        const="",
        metavar="RECIPE",
        help="make an approximate index as well, which needs faiss; RECIPE: in faiss' words, such as IVF4096,SQfp16",
    )

    search = add_command(
        commands,
        "search",
        _search,
        "find pictures or captions of a corpus by texts or pictures",
        epilog="Every row is compared unless --approximate is given. Of equal scores the first in the corpus wins.",
    )
    search.add_argument("texts", nargs="*", metavar="TEXT", help="queries, in any language")
    search.add_argument("--image", nargs="+", default=[], type=Path, metavar="FILE", help="pictures as queries")
    search.add_argument(
        "--index", required=True, type=Path, metavar="DIR", help="what `altclip index` has written, or its store"
    )
    search.add_argument("--among", choices=["images", "texts"], help="what is found; default: images if there are any")
    search.add_argument("--top", type=positive, default=10, metavar="N", help="hits of a query; default: %(default)s")
    search.add_argument("--approximate", action="store_true", help="look through a few lists of rows, not all rows")
    search.add_argument("--probes", type=positive, metavar="N", help="of --approximate: how many lists")
    search.add_argument(
        "--contact-sheet", type=Path, metavar="FILE", help="write a PNG with the pictures that were found, too"
    )
    add_model_options(search)


def _index(options: argparse.Namespace) -> None:
    from altclip_jax.corpus.index import build
    from altclip_jax.corpus.store import Store

    folder = options.output or options.store / _OWN
    rows = build(Store.open(options.store), folder)
    made = {} if options.approximate is None else _approximate(folder, list(rows), options.approximate or None)
    if options.json:
        told = {"approximate": {kind: dataclasses.asdict(one) for kind, one in made.items()}} if made else {}
        print_json({"index": str(folder), **{str(kind): count for kind, count in rows.items()}, **told})
        return
    print(f"{folder}: {' and '.join(f'{count:,} {kind}' for kind, count in rows.items())}")
    for kind, one in made.items():
        count, of = one.questions
        print(
            f"{kind}, approximately: {one.recipe}, {one.probes} lists a search, {one.recall:.1%} of the ten best rows"
            f" for {count} of the {of}"
        )


def _approximate(folder: Path, kinds: Sequence[Kind], recipe: str | None) -> dict[Kind, Approximation]:
    """Makes the approximate index of each kind; if there are two, the rows of each are the questions to the other."""
    from altclip_jax.corpus.approximate import ApproximateIndex
    from altclip_jax.corpus.index import Index

    indices = {kind: Index(folder, kind) for kind in kinds}
    others = {kind: next((indices[other] for other in kinds if other != kind), None) for kind in kinds}
    return {kind: ApproximateIndex.build(index, recipe, like=others[kind]).told for kind, index in indices.items()}


def _search(options: argparse.Namespace) -> None:
    import numpy as np

    from altclip_jax.corpus.embed import doubt
    from altclip_jax.corpus.search import search
    from altclip_jax.weights.fingerprint import version_of

    if options.probes is not None and not options.approximate:
        raise ValueError("--probes says how many lists an approximate search looks through: add --approximate.")
    if not options.texts and not options.image:
        raise ValueError("There is nothing to search for: give texts, or pictures with --image.")
    index = _open(options)
    clip = load_model(options)
    version = version_of(index.told["fingerprint"])
    if index.told["fingerprint"] != clip.fingerprint(version):
        raise ValueError(
            f"{index.folder} is of another model, {index.told['model']}, whose embeddings this one's cannot be compared"
            " with: name it with --model."
        )
    if version == 1:
        print(f"altclip: {doubt(index.folder)}", file=sys.stderr)
    queries = np.concatenate([clip.encode_text(options.texts), clip.encode_images(options.image)])
    if options.approximate:
        from altclip_jax.corpus.approximate import ApproximateIndex

        hits = ApproximateIndex.open(index).search(queries, options.top, probes=options.probes)
    else:
        hits = search(index.values, queries, options.top)
    found = [
        {"query": str(query), "hits": _hits_of(index, hits, place)}
        for place, query in enumerate([*options.texts, *options.image])
    ]
    if options.contact_sheet is not None:
        _write_sheet(options, found)
    if options.json:
        print_json(found)
    else:
        _print(found)


def _open(options: argparse.Namespace) -> Index:
    from altclip_jax.corpus.index import DESCRIPTION, Index

    folder = options.index / _OWN if (options.index / _OWN).is_dir() else options.index
    kind: Kind = options.among or ("images" if (folder / f"images.{DESCRIPTION}").is_file() else "texts")
    if options.contact_sheet is not None and kind != "images":
        raise ValueError("A contact sheet shows pictures, and captions are searched: leave --contact-sheet away.")
    return Index(folder, kind)


def _hits_of(index: Index, hits: Hits, query: int) -> list[dict[str, Any]]:
    rows, scores = hits.rows[query].tolist(), hits.scores[query].tolist()
    return [
        {"rank": rank, "score": score, "row": row, **index.of(row)}
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
    ]


def _print(found: list[dict[str, Any]]) -> None:
    for entry in found:
        print(entry["query"])
        for hit in entry["hits"]:
            said = f"{hit['text']}  ({hit['id']})" if "text" in hit else hit["id"]
            print(f"  {hit['rank']:4}  {hit['score']:7.4f}  {said}")


def _write_sheet(options: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    from altclip_jax.corpus.contact_sheet import Row, contact_sheet, picture_of
    from altclip_jax.files.json_file import write_bytes
    from altclip_jax.files.ownership import keep_apart

    keep_apart([*options.image, *(hit["id"] for entry in found for hit in entry["hits"])], options.contact_sheet)
    pictures = [None] * len(options.texts) + [picture_of(str(path)) for path in options.image]
    rows = [
        Row(query, [(picture_of(hit["id"]), f"{hit['rank']}   {hit['score']:.4f}") for hit in entry["hits"]])
        for query, entry in zip(pictures, found, strict=True)
    ]
    data, missing = contact_sheet(rows)
    write_bytes(options.contact_sheet, data)
    if missing:
        print(
            f"altclip: {len(missing)} pictures are crosses on the sheet, {missing[0]} among them: they are looked for"
            " where they were when they were embedded, as seen from the folder of that command.",
            file=sys.stderr,
        )

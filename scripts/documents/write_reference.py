"""Writes what documents say of the program itself: docs/cli.md, and the tables of docs/checkpoint_formats.md.

    python -m scripts.documents.write_reference            # write
    python -m scripts.documents.write_reference --check    # exit code 1 if a document is not what would be written

The commands come from the argument parsers, the tables of names from the rules of `altclip_jax/weights/families.py` and
the shapes that the models have. In a document that is written by hand, what stands between the comments
`generated: NAME` and `end` is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from altclip_jax import AltCLIPConfig, AltCLIPModel, CLIPConfig, CLIPModel, cli
from altclip_jax.weights.convert import flatten
from altclip_jax.weights.families import ALTCLIP, CLIP, XLM_ROBERTA
from altclip_jax.weights.rules import RuleTable, torch_shape

DOCS = Path(__file__).parents[2] / "docs"
GENERATED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = """# The command

<!-- Written by scripts/documents/write_reference.py; changes belong into altclip_jax/cli/. -->

`altclip COMMAND --help` says the same. Exit codes: 0 done; 1 an error, which a sentence on standard error explains; 2
wrong usage; 75 a training run that was asked to stop and has saved everything; 76 another process of the run failed;
130 interrupted; 143 asked to stop while it waited in vain for another process.
"""

# Sizes that tell each axis of each parameter: no two are equal, nor a product of others.
TEXT = {"vocab_size": 1009, "max_position_embeddings": 101, "hidden_size": 62, "intermediate_size": 67}
VISION = {"hidden_size": 74, "intermediate_size": 79, "num_channels": 5, "image_size": 77, "patch_size": 7}
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2}
TOP = {"projection_dim": 83}
AXES = {
    1009: "V",
    101: "P",
    3: "T",
    62: "H",
    67: "F",
    71: "D",
    83: "E",
    74: "W",
    79: "G",
    5: "C",
    7: "p",
    122: "N+1",
    201: "2P-1",
    31: "H/heads",
}
CHANGES = {"same": "as it is", "linear": "transposed", "patches": "axes 2, 3, 1, 0"}


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the documents, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and say what is not as it would be written"
    )
    check = parser.parse_args(arguments).check
    stale = []
    for path, text in documents():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and stale:
        told = f"{', '.join(stale)} is not what the program says: run python -m scripts.documents.write_reference"
        print(told, file=sys.stderr)
        return 1
    return 0


def documents() -> Iterator[tuple[Path, str]]:
    """Gives each document and what should stand in it."""
    yield DOCS / "cli.md", HEAD + "".join(command_sections(cli.make_parser()))
    formats = DOCS / "checkpoint_formats.md"
    tables = {"altclip": names_table(ALTCLIP), "clip": names_table(CLIP), "xlm_roberta": names_table(XLM_ROBERTA)}
    text = formats.read_text(encoding="utf-8")
    yield formats, GENERATED.sub(lambda match: f"{match[1]}{tables[match[2]]}{match[3]}", text)


def command_sections(parser: argparse.ArgumentParser, depth: int = 1) -> Iterator[str]:
    """Gives a section for a command and each below it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if depth > 1:
        yield f"\n{'#' * min(depth, 4)} {parser.prog}\n\n{parser.description}\n"
        yield from options_of(parser)
        if parser.epilog:
            yield f"\n{' '.join(parser.epilog.split())}\n"
    for action in below:
        for child in action.choices.values():
            yield from command_sections(child, depth + 1)


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Gives a table for each group of a command's options."""
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
        ]
        if not actions:
            continue
        own = group.title not in ("positional arguments", "options")
        if own:
            said = f": {group.description}" if group.description else ""
            yield f"\n**{(group.title or '').capitalize()}**{said}\n"
        yield f"\n| {'argument' if group.title == 'positional arguments' else 'option'} | |\n|---|---|\n"
        for action in actions:
            yield f"| {write_option(action)} | {explain(action, parser)} |\n"


def write_option(action: argparse.Action) -> str:
    """Returns an option as one writes it."""
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    value = {"+": f"{value} [{value} ...]", "*": f"[{value} ...]", "?": f"[{value}]", 0: ""}.get(action.nargs, value)
    names = ", ".join(action.option_strings)
    return f"`{f'{names} {value}'.strip()}`"


def explain(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Returns what a table's cell says of an option."""
    help_text = (action.help or "") % {**vars(action), "prog": parser.prog}
    required = "**needed**; " if action.required and action.option_strings else ""
    return (required + " ".join(help_text.split())).replace("|", r"\|").replace("{}", "`{}`")


def names_table(table: RuleTable) -> str:
    """Returns a family's names, paths and shapes as a table."""
    shapes = known_shapes(table)
    lines = ["\n| PyTorch | shape | here | shape | |\n|---|---|---|---|---|\n"]
    for rule in table.rules:
        shape = shapes[rule.path.replace("{i}", "0")]
        theirs, ours = (axes(each) for each in (torch_shape(shape, rule.transform), shape))
        lines.append(f"| `{rule.name}` | {theirs} | `{rule.path}` | {ours} | {CHANGES[rule.transform]} |\n")
    return "".join([*lines, "\n"])


def known_shapes(table: RuleTable) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each path in a model of the family."""
    if table is CLIP:
        config = CLIPConfig(text_config={**TEXT, **LAYERS}, vision_config={**VISION, **LAYERS}, **TOP)
        shapes = CLIPModel(config).param_shapes()
    else:
        text = {**TEXT, **LAYERS, "type_vocab_size": 3, "project_dim": 71, "position_embedding_type": "relative_key"}
        shapes = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config={**VISION, **LAYERS}, **TOP)).param_shapes()
    return {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}


def axes(shape: tuple[int, ...]) -> str:
    """Returns a shape in letters."""
    return "(" + ", ".join(AXES[size] for size in shape) + ("," if len(shape) == 1 else "") + ")"


if __name__ == "__main__":
    sys.exit(main())

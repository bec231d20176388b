"""convert, info, init: checkpoints described, changed and made."""

from __future__ import annotations

import argparse
from typing import Any

from altclip_jax.cli.command import add_command, add_hub_options, print_json

_SHOWN = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "vocab_size",
    "image_size",
    "patch_size",
)


def add_commands(commands: Any) -> None:
    """Adds the commands of this file to the subparsers of `altclip`."""
    convert = add_command(commands, "convert", _convert, "turn a checkpoint into another form, and verify it")
    convert.add_argument("source", help="a folder or hub id")
    convert.add_argument("target", help="the new folder")
    convert.add_argument("--part", choices=["full", "text", "vision"], help="the whole model or one tower")
    convert.add_argument("--form", choices=["safetensors", "orbax"], default="safetensors", help="default: %(default)s")
    convert.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the weights that are written; default: that of the source",
    )
    convert.add_argument("--max-shard-bytes", type=int, default=5_000_000_000, metavar="N", help="default: %(default)s")
    bits = convert.add_mutually_exclusive_group()
    bits.add_argument("--quantize", choices=["int8", "int4"], help="store kernels and tables in few bits")
    bits.add_argument("--dequantize", action="store_true", help="write the float weights that a quantized source gives")
    convert.add_argument(
        "--group-size", type=int, metavar="N", help="of int4; default: 128, or 64 or 32 where it does not divide"
    )
    add_hub_options(convert)

    info = add_command(commands, "info", _info, "config, parameter counts and files, without loading the weights")
    info.add_argument("source", nargs="?", help="a folder or hub id; default: the embedded model")
    add_hub_options(info)

    start = add_command(commands, "init", _init, "make a checkpoint to train from")
    start.add_argument("target", help="the new folder")
    start.add_argument("--text", metavar="SOURCE", help="XLM-RoBERTa: the text tower, and the tokenizer")
    start.add_argument(
        "--clip", metavar="SOURCE", help="CLIP: the image tower, projections, temperature, image processor"
    )
    start.add_argument("--config", metavar="FILE", help="config.json of the model, if not both of these decide it")
    start.add_argument("--tokenizer", metavar="SOURCE", help="whose tokenizer; default: that of --text")
    start.add_argument("--image-processor", metavar="SOURCE", help="whose image processor; default: that of --clip")
    start.add_argument("--seed", type=int, default=0, metavar="N", help="of what is initialised; default: %(default)s")
    start.add_argument("--local-files-only", action="store_true", help="never use the network")


def _convert(options: argparse.Namespace) -> None:
    from altclip_jax import checkpoints
    from altclip_jax.quantization.rules import quantization_rules

    if options.group_size is not None and options.quantize is None:
        raise ValueError(f"--group-size {options.group_size} is for --quantize int4: add that.")
    rules = options.quantize
    if options.group_size is not None:
        rules = quantization_rules(options.quantize, options.group_size)
    description = checkpoints.convert(
        options.source,
        options.target,
        part=options.part,
        dtype=options.dtype,
        form=options.form,
        max_shard_bytes=options.max_shard_bytes,
        quantize=rules,
        dequantize=options.dequantize,
        revision=options.revision,
        local_files_only=options.local_files_only,
    )
    _print_description(description, options.json)
    if not options.json:
        print("verified: every value was read back as it was written")
        if options.quantize:
            print("quantized: this is lossy, keep the float weights; transformers does not read these")
        elif options.dequantize:
            print("dequantized: what the few bits hold; what quantization took from the original stays lost")


def _init(options: argparse.Namespace) -> None:
    from altclip_jax import student

    names = ("text", "clip", "config", "tokenizer", "image_processor", "seed", "local_files_only")
    made = student.start(options.target, **{name: getattr(options, name) for name in names})
    if options.json:
        print_json(made._asdict())
        return
    print(f"{made.target}: {made.model_type}, {made.parameters:,} parameters")
    for source, count in made.taken.items():
        print(f"  {count} tensors from {source}")
    print(f"  {len(made.initialised)} tensors initialised with seed {options.seed}")
    for path in made.initialised if made.taken else ():
        print(f"    {path}")
    print(f"  tokenizer: {made.tokenizer}")
    print(f"  image processor: {made.image_processor}")


def _info(options: argparse.Namespace) -> None:
    from altclip_jax import checkpoints
    from altclip_jax.assets import default_checkpoint

    source = options.source or default_checkpoint()
    description = checkpoints.describe(source, revision=options.revision, local_files_only=options.local_files_only)
    _print_description(description, options.json)


def _print_description(description: Any, as_json: bool) -> None:
    if as_json:
        print_json({**description._asdict(), "files": [file._asdict() for file in description.files]})
        return
    print(f"{description.source}: {description.config['model_type']}")
    for name, count in description.parameters.items():
        print(f"  {name:18} {count:>15,} parameters")
    for file in description.files:
        print(f"  {file.name:34} {file.bytes:>15,} bytes, {file.tensors} tensors, {', '.join(file.dtypes)}")
    if description.quantization is not None:
        from altclip_jax.quantization.files import say_counts

        groups = description.quantization.get("group_sizes")
        of = f", in groups of {' and '.join(map(str, groups))}" if groups else ""
        print(f"  quantized: {say_counts(description.quantization['tensors'])}{of}")
    towers = {name: value for name, value in description.config.items() if name in ("text_config", "vision_config")}
    for name, values in (towers or {"config": description.config}).items():
        print(f"  {name}: " + ", ".join(f"{key} {values[key]}" for key in _SHOWN if key in values))

"""Whether a processor is that of a model: its ids have rows, its special tokens are the model's, its pictures fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from altclip_jax.config import CLIPTextConfig, TwoTowerConfig, VisionConfig, XLMRobertaConfig
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.processing.processor import AltCLIPProcessor
from altclip_jax.processing.tokenizer import BaseTokenizer


def load_processor(
    folder: Path, config: TwoTowerConfig, source: str | None = None, *, use_fast: bool | None = None
) -> AltCLIPProcessor:
    """Returns the processor of a folder, if it is that of the model; `source` is what errors call it.

    Raises:
        ValueError: it is not; all differences are named.
    """
    processor = AltCLIPProcessor.from_pretrained(folder, use_fast=use_fast)
    check_processor(config, processor, source or str(folder))
    return processor


def check_processor(config: TwoTowerConfig, processor: AltCLIPProcessor, source: str) -> None:
    """Raises ValueError if a processor is not that of a model, naming all differences; `source` is what it is called.

    A tokenizer may have fewer ids than the model has rows.
    """
    _refuse(
        [
            *tokenizer_problems(config.text_config, processor.tokenizer),
            *picture_problems(config.vision_config, processor.image_processor),
        ],
        f"The processor of {source}",
    )


def check_tokenizer(config: CLIPTextConfig | XLMRobertaConfig, tokenizer: BaseTokenizer, source: str) -> None:
    """Raises ValueError if a tokenizer is not that of a text tower, as `check_processor` does."""
    _refuse(tokenizer_problems(config, tokenizer), f"The tokenizer of {source}")


def tokenizer_problems(config: CLIPTextConfig | XLMRobertaConfig, tokenizer: BaseTokenizer) -> Iterator[str]:
    """Says in what a tokenizer is not that of a text tower."""
    ids, rows = tokenizer.highest_id + 1, config.vocab_size
    if ids > rows:
        yield f"the tokenizer has {ids} ids and text_config.vocab_size={rows} rows for them"
    around = tokenizer("")["input_ids"]
    begin, end = (around[0], around[-1]) if around else (None, None)
    if isinstance(config, CLIPTextConfig):
        # of their other special ids published files tell what is true of no tokenizer, and nothing reads them
        if config.reads_at_highest_id and end != ids - 1:
            yield f"the tokenizer ends texts with id {end}, and eos_token_id=2 reads them off at their highest id"
        elif not config.reads_at_highest_id and end != config.eos_token_id:
            yield f"the tokenizer ends texts with id {end} and text_config.eos_token_id={config.eos_token_id}"
        return
    if tokenizer.pad_token_id != config.pad_token_id:
        yield f"the tokenizer pads with {tokenizer.pad_token_id} and text_config.pad_token_id={config.pad_token_id}"
    if config.bos_token_id is not None and begin != config.bos_token_id:
        yield f"the tokenizer begins texts with id {begin} and text_config.bos_token_id={config.bos_token_id}"
    ends = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
    if None not in ends and end not in ends:
        yield f"the tokenizer ends texts with id {end} and text_config.eos_token_id={config.eos_token_id}"


def picture_problems(config: VisionConfig, processor: AltCLIPImageProcessor) -> Iterator[str]:
    """Says why an image tower cannot take what an image processor makes, whatever the picture."""
    size, made = config.image_size, processor.output_size
    if made is not None and made != (size, size):
        yield f"the image processor makes pictures of {made[0]}*{made[1]} pixels and vision_config.image_size={size}"
    elif made is None and processor.do_resize and processor.size["shortest_edge"] != size:
        edge = processor.size["shortest_edge"]
        yield f"the image processor makes pictures with a shortest edge of {edge} and vision_config.image_size={size}"
    if processor.do_normalize and config.num_channels != 3:
        yield f"the image processor makes pictures of 3 channels and vision_config.num_channels={config.num_channels}"


def _refuse(problems: Iterable[str], subject: str) -> None:
    listed = list(problems)
    if listed:
        raise ValueError(
            f"{subject} does not fit the model:\n  - "
            + "\n  - ".join(listed)
            + "\nTake the files of the checkpoint that"
            " the model is from; or, where it is config.json that errs, correct that."
        )

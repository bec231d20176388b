"""Strings and images to one batch: the tokenizer and the image processor behind one call, and whether they fit a model.

Source: processing_altclip.py of transformers 4.56.2, whose arguments and results these are.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from altclip_jax.config import CLIPTextConfig, TwoTowerConfig, VisionConfig, XLMRobertaConfig
from altclip_jax.files import hub
from altclip_jax.files.checkpoint_folder import IMAGE_FILES, PROCESSOR_FILES, TOKENIZER_FILES, read_whole
from altclip_jax.files.whole import replace_files
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.processing.tokenizer import BaseTokenizer, load_tokenizer

IMAGE_PROCESSOR = hub.Files("image processor", (IMAGE_FILES,))
TOKENIZER = hub.Files("tokenizer", (TOKENIZER_FILES,))
_TOKENIZER_ARGUMENTS = frozenset(inspect.signature(BaseTokenizer.__call__).parameters) - {
    "self",
    "text",
    "return_tensors",
}


class AltCLIPProcessor:
    """Prepares texts and pictures for `AltCLIPModel` and `CLIPModel`; numpy in and out, and no jax."""

    model_input_names = ("pixel_values", "input_ids", "attention_mask")

    def __init__(self, image_processor: AltCLIPImageProcessor, tokenizer: BaseTokenizer):
        """Joins the two parts, both reachable under these names."""
        for name, part, kind, expected in (
            ("image_processor", image_processor, AltCLIPImageProcessor, "an AltCLIPImageProcessor"),
            ("tokenizer", tokenizer, BaseTokenizer, "an AltCLIPTokenizer or CLIPTokenizer"),
        ):
            if not isinstance(part, kind):
                raise TypeError(f"{name} must be {expected}, got {type(part).__name__}.")
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "np",
        text_kwargs: Mapping[str, Any] | None = None,
        images_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns input_ids and attention_mask for texts, pixel_values for pictures, in that order.

        Args:
            images: One picture or a list: PIL images, arrays, paths, bytes; see `AltCLIPImageProcessor`.
            text: One string or a list; see `BaseTokenizer` for its arguments.
            return_tensors: "np", "jax", or None for lists. Texts of unequal length without padding are lists of
                numbers in any case, since they make no array.
            text_kwargs: Arguments of the tokenizer alone.
            images_kwargs: Fields of the image processor, for this call alone.
            **kwargs: Either of these, told apart by name: padding, truncation, max_length, ...; size, crop_size, ...

        Raises:
            ValueError: neither pictures nor text, a text too long for the model, a picture that cannot be read.
            TypeError: an argument that neither part has.
        """
        if images is None and text is None:
            raise ValueError("You must specify either text or images.")
        for_text = {name: value for name, value in kwargs.items() if name in _TOKENIZER_ARGUMENTS}
        for_images = {name: value for name, value in kwargs.items() if name not in _TOKENIZER_ARGUMENTS}
        unknown = sorted(set(for_images) - set(self.image_processor.call_arguments()))
        if unknown:
            raise TypeError(
                f"AltCLIPProcessor has no argument {', '.join(unknown)}: those of the tokenizer are"
                f" {', '.join(sorted(_TOKENIZER_ARGUMENTS))}, the others are the image processor's fields."
            )
        batch: dict[str, Any] = {}
        if text is not None:
            batch.update(self.tokenizer(text, return_tensors=return_tensors, **{**for_text, **(text_kwargs or {})}))
        if images is not None:
            pictures = self.image_processor(
                images, return_tensors=return_tensors, **{**for_images, **(images_kwargs or {})}
            )
            batch.update(pictures)
        return batch

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Reads both parts from a folder or a hub repository; the tokenizer is that of the folder's family.

        `overrides` replace what the files say: fields of the image processor such as size={"shortest_edge": 180}, or
        of the tokenizer such as model_max_length=77.
        """
        folder = hub.fetch(
            source,
            IMAGE_PROCESSOR,
            TOKENIZER,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
        )
        fields = set(AltCLIPImageProcessor.field_names())
        for_images = {name: value for name, value in overrides.items() if name in fields}
        for_text = {name: value for name, value in overrides.items() if name not in fields}

        pictures, texts = read_whole(
            folder,
            lambda: (
                AltCLIPImageProcessor.from_pretrained(folder, **for_images),
                load_tokenizer(folder, **for_text),
            ),
        )
        return cls(image_processor=pictures, tokenizer=texts)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files of both parts, as transformers reads them, in the place of all that a processor has there.

        Whoever loads it from there meanwhile, or after this was killed, gets the earlier one or this one, whole.
        """
        replace_files(folder, self.files(), PROCESSOR_FILES)

    def files(self) -> dict[str, bytes]:
        """Returns the files that `save_pretrained` writes, by name."""
        return {**self.image_processor.files(), **self.tokenizer.files()}

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """See `BaseTokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """See `BaseTokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)


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
    before, after = tokenizer.around
    around = [*before, *after]
    begin, end = (around[0], around[-1]) if around else (None, None)
    if len(around) > (most := tokenizer.model_max_length):
        yield f"the tokenizer has model_max_length={most} and puts {len(around)} ids around every text"
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

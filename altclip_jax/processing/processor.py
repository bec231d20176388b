"""Strings and images to one batch: the tokenizer and the image processor behind one call.

Source: processing_altclip.py of transformers 4.56.2, whose arguments and results these are.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

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

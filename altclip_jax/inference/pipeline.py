"""AltCLIP: the one convenient object. Strings and pictures in, answers out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float32

from altclip_jax.assets import default_checkpoint
from altclip_jax.checkpoints import kind_of
from altclip_jax.files import hub
from altclip_jax.files.checkpoint_folder import read_whole
from altclip_jax.inference import encoders
from altclip_jax.inference.token_batches import TokenBatching
from altclip_jax.pretrained import AltCLIPModel, CLIPModel, TwoTowerModel
from altclip_jax.processing.fit import check_processor
from altclip_jax.processing.image_files import array_layout, single_pictures
from altclip_jax.processing.lengths import positive
from altclip_jax.processing.processor import IMAGE_PROCESSOR, TOKENIZER, AltCLIPProcessor
from altclip_jax.quantization.rules import QuantizationRule
from altclip_jax.weights.convert import Params, flatten
from altclip_jax.weights.fingerprint import VERSION, Origin, fingerprint
from altclip_jax.weights.folder import CONFIG, WEIGHTS, save

Progress = Callable[[int], None]


class AltCLIP:
    """A model, its parameters and its processor, with the questions people ask of them."""

    def __init__(self, model: TwoTowerModel, params: Params, processor: AltCLIPProcessor, name: str = "AltCLIP"):
        """Joins the parts; most users call `from_pretrained`.

        Raises:
            ValueError: the processor is not that of the model; all differences are named.
        """
        check_processor(model.config, processor, name)
        self.model, self.params, self.processor, self.name = model, params, processor, name
        self._origin: Origin | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        quantize: str | Sequence[QuantizationRule] | None = None,
    ) -> Self:
        """Loads a folder or hub repository; without `source` the embedded model, which needs no network.

        It may also be a CLIP, such as a teacher. See `AltCLIPModel.from_pretrained` for the arguments and errors; a
        processor that is not that of the model is a ValueError, too.
        """
        place: Any = default_checkpoint() if source is None else source
        folder = hub.fetch(
            place, CONFIG, WEIGHTS, IMAGE_PROCESSOR, TOKENIZER, revision=revision, local_files_only=local_files_only
        )

        def read() -> tuple[TwoTowerModel, Params, AltCLIPProcessor, Origin]:
            kind = CLIPModel if kind_of(folder) == ("clip", "full") else AltCLIPModel
            origin = Origin(folder, repr(quantize))
            model, params = kind.from_pretrained(folder, dtype=dtype, param_dtype=param_dtype, quantize=quantize)
            return model, params, AltCLIPProcessor.from_pretrained(folder), origin

        model, params, processor, origin = read_whole(folder, read)
        clip = cls(model, params, processor, name="embedded default" if source is None else str(source))
        clip._origin = origin.remember(params)
        return clip

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        max_shard_bytes: int = 5_000_000_000,
    ) -> None:
        """Writes model and processor in one step, as transformers reads them.

        Args:
            folder: Where to; made if absent. A checkpoint there is replaced whole: whoever loads it with this library
                meanwhile, or after this was killed, gets the earlier one or this one.
            dtype: Dtype in the file; None keeps that of each parameter.
            max_shard_bytes: Above this, several files and an index are written.

        Raises:
            CheckpointError: finite numbers would be infinite in `dtype`; all tensors that have some are named.
            FileExistsError: the folder is that of a run, a store, an index or programs.
            OSError: the file system refused.
        """
        processor = self.processor.files()
        save(self.model, folder, self.params, dtype=dtype, max_shard_bytes=max_shard_bytes, processor=processor)

    def fingerprint(self, version: int = VERSION) -> str:
        """Returns what tells its parameters from all others: a hash of all their bytes, and how they are stored.

        Of gigabytes it takes seconds, the first time; where they come from files it is kept in the user's cache.

        Raises:
            ValueError: this library does not know the version.
        """
        origin = self._origin if version == VERSION else None
        return fingerprint(self.params, version) if origin is None else origin.fingerprint(self.params)

    def encode_text(
        self, texts: str | Sequence[str], *, batch_size: int = 64, progress: Progress | None = None
    ) -> Float32[np.ndarray, "texts projection"]:
        """Returns unit embeddings, one row per text.

        A text longer than the model's position table is cut to it.

        Args:
            texts: One string or several.
            batch_size: How many texts of 32 tokens the model sees at once; of shorter ones more, of longer ones fewer.
            progress: Called with the number of rows done.

        Raises:
            ValueError: `batch_size` is less than 1.
        """
        positive("batch_size", batch_size)
        texts = [texts] if isinstance(texts, str) else list(texts)

        def encode(ids: np.ndarray, mask: np.ndarray) -> encoders.Encoding:
            return encoders.Encoding(encoders.encode_text(self.model, self.params, ids, mask), len(ids))

        batching = TokenBatching(self.processor.tokenizer, self.text_limit, tokens=32 * batch_size)
        return self._stack(list(batching.encode(encode, texts, progress)))

    @property
    def text_limit(self) -> int:
        """To how many tokens texts are cut."""
        limit: int = min(self.processor.tokenizer.model_max_length, self.model.config.text_config.max_tokens)
        return limit

    def encode_images(
        self, images: Any, *, batch_size: int = 32, progress: Progress | None = None
    ) -> Float32[np.ndarray, "images projection"]:
        """Returns unit embeddings, one row per picture.

        Args:
            images: Paths, PIL images, bytes, or arrays, as `AltCLIPImageProcessor` takes them: one, a list of any
                depth, or an array with a batch axis. All are turned as their camera says, unless the processor's
                `apply_exif_orientation` is False.
            batch_size: How many pictures are prepared and shown to the model at once.
            progress: Called with the number of pictures done.

        Raises:
            ImageError: a picture cannot be read; the message names it.
            ValueError: `batch_size` is less than 1.
        """
        positive("batch_size", batch_size)
        pictures = single_pictures(images)
        layout, at_once = array_layout(pictures), encoders.pictures_at_once(self.params)
        prepare = self.processor.image_processor.orient("exif")

        def begun() -> Iterator[encoders.Encoding]:
            for part in encoders.batches(len(pictures), batch_size):
                pixels = prepare(pictures[part], input_data_format=layout)["pixel_values"]
                padded = encoders.pad_rows(pixels, encoders.padded_size(len(pixels), batch_size))
                found = encoders.encode_images(self.model, self.params, padded, at_once=at_once)
                yield encoders.Encoding(found, len(pixels))

        rows = []
        for found in encoders.in_flight(begun()):  # pictures are decoded while the last batch is computed
            rows.append(found)
            if progress:
                progress(len(found))
        return self._stack(rows)

    def similarity(self, images: Any, texts: str | Sequence[str]) -> Float32[np.ndarray, "images texts"]:
        """Returns the cosine of each picture with each text."""
        cosines: np.ndarray = self.encode_images(images) @ self.encode_text(texts).T
        return cosines

    def classify(
        self,
        images: Any,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = ("{}",),
        progress: Progress | None = None,
    ) -> Float32[np.ndarray, "images labels"]:
        """Returns the probability of each label for each picture; rows sum to 1.

        Args:
            images: As in `encode_images`.
            labels: Names in any language.
            templates: Prompts with one {} each, such as "a photo of a {}"; the embeddings of a label's prompts are
                averaged and normalised again (prompt ensembling, Radford et al. 2021).
            progress: Called with the number of pictures done.

        Raises:
            ValueError: no labels, or a template without exactly one {}.
        """
        scale = float(np.exp(np.asarray(self.params["logit_scale"], np.float32)))
        logits = scale * self.encode_images(images, progress=progress) @ self.encode_labels(labels, templates).T
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
        return probabilities

    def encode_labels(
        self, labels: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> Float32[np.ndarray, "labels projection"]:
        """Returns one unit embedding per label, the normalised mean over its prompts."""
        labels, templates = _strings("labels", labels), _strings("templates", templates)
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"A template has exactly one {{}} where the label goes, got {template!r}.")
        prompts = [template.replace("{}", label) for label in labels for template in templates]
        means = self.encode_text(prompts).reshape(len(labels), len(templates), -1).mean(axis=1)
        units: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
        return units

    def _stack(self, rows: list[np.ndarray]) -> Float32[np.ndarray, "rows projection"]:
        return np.concatenate([np.zeros((0, self.model.config.projection_dim), np.float32), *rows])

    def __repr__(self) -> str:
        leaves = list(flatten(self.params).values())
        count = sum(leaf.size for leaf in leaves)
        forms = sorted({getattr(leaf, "scheme", str(leaf.dtype)) for leaf in leaves})
        devices = encoders.devices_of(self.params)
        there = str(*devices) if len(devices) == 1 else f"{len(devices)} devices" if devices else "no device"
        return (
            f"AltCLIP({self.name!r}, {count:,} parameters, stored {' and '.join(forms)}, computed"
            f" {np.dtype(self.model.dtype)}, on {there})"
        )


def _strings(name: str, values: Sequence[str]) -> list[str]:
    values = [values] if isinstance(values, str) else list(values)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} must be at least one string, got {values!r}.")
    return values

"""AltCLIP: the one convenient object. Strings and pictures in, answers out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self, overload

import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float32

from altclip_jax.assets import default_checkpoint
from altclip_jax.checkpoints import kind_of
from altclip_jax.files import hub
from altclip_jax.files.checkpoint_folder import read_whole
from altclip_jax.inference.encoder import Embedded, Encoder, OnError, Progress, devices_of
from altclip_jax.model.layers import AttentionImplementation
from altclip_jax.parallel import local_mesh
from altclip_jax.pretrained import AltCLIPModel, CLIPModel, TwoTowerModel
from altclip_jax.processing.processor import IMAGE_PROCESSOR, TOKENIZER, AltCLIPProcessor, check_processor
from altclip_jax.quantization.rules import QuantizationRule
from altclip_jax.weights.convert import Params, flatten
from altclip_jax.weights.fingerprint import VERSION, Origin, fingerprint
from altclip_jax.weights.folder import CONFIG, WEIGHTS, save


class AltCLIP:
    """A model, its parameters and its processor, with the questions people ask of them.

    Attributes:
        encoder: The engine below, which also embeds what comes from an iterator batch by batch.
        name: What it is called.
    """

    def __init__(
        self,
        model: TwoTowerModel,
        params: Params,
        processor: AltCLIPProcessor,
        name: str = "AltCLIP",
        *,
        mesh: Mesh | Literal["all"] | None = None,
    ):
        """Joins the parts; most users call `from_pretrained`.

        Raises:
            ValueError: the processor is not that of the model; all differences are named. Or the mesh has devices of
                other processes.
        """
        check_processor(model.config, processor, name)
        self.encoder, self.name = Encoder(model, params, processor, mesh=mesh), name
        self._origin: Origin | None = None

    @property
    def model(self) -> TwoTowerModel:
        """The Flax module."""
        return self.encoder.model

    @property
    def params(self) -> Params:
        """Its parameters, where they are computed with; others may be put in their place."""
        return self.encoder.params

    @params.setter
    def params(self, params: Params) -> None:
        self.encoder = Encoder(self.model, params, self.processor, mesh=self.encoder.mesh)

    @property
    def processor(self) -> AltCLIPProcessor:
        """What prepares texts and pictures; another one may be put in its place."""
        return self.encoder.processor

    @processor.setter
    def processor(self, processor: AltCLIPProcessor) -> None:
        check_processor(self.model.config, processor, self.name)
        self.encoder = Encoder(self.model, self.params, processor, mesh=self.encoder.mesh)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        quantize: str | Sequence[QuantizationRule] | None = None,
        attention_implementation: AttentionImplementation = "plain",
        mesh: Mesh | Literal["all"] | None = None,
    ) -> Self:
        """Loads a folder or hub repository; without `source` the embedded model, which needs no network.

        It may also be a CLIP, such as a teacher. See `AltCLIPModel.from_pretrained` for the arguments and errors; a
        processor that is not that of the model is a ValueError, too. With mesh="all" the rows of a batch are shared
        out over all local devices.
        """
        place: Any = default_checkpoint() if source is None else source
        folder = hub.fetch(
            place,
            CONFIG,
            WEIGHTS,
            IMAGE_PROCESSOR,
            TOKENIZER,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
        )
        mesh = local_mesh() if mesh == "all" else mesh

        def read() -> tuple[TwoTowerModel, Params, AltCLIPProcessor, Origin]:
            kind = CLIPModel if kind_of(folder) == ("clip", "full") else AltCLIPModel
            origin = Origin(folder, repr(quantize))
            model, params = kind.from_pretrained(
                folder,
                dtype=dtype,
                param_dtype=param_dtype,
                quantize=quantize,
                attention_implementation=attention_implementation,
                mesh=mesh,
            )
            return model, params, AltCLIPProcessor.from_pretrained(folder), origin

        model, params, processor, origin = read_whole(folder, read)
        clip = cls(model, params, processor, name="embedded default" if source is None else str(source), mesh=mesh)
        clip._origin = origin.remember(clip.params)
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

    def warmup(self, *, texts: int = 64, images: int = 32) -> int:
        """Compiles what calls with these batch sizes need before the first of them; see `Encoder.warmup`."""
        return self.encoder.warmup(texts=texts, images=images)

    @property
    def text_limit(self) -> int:
        """To how many tokens texts are cut."""
        return self.encoder.text_limit

    def encode_text(
        self, texts: str | Iterable[str], *, batch_size: int = 64, progress: Progress | None = None
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
        return self.encoder.embed_texts(texts, batch_size, progress=progress)

    @overload
    def encode_images(
        self,
        images: Any,
        *,
        batch_size: int = 32,
        on_error: Literal["raise"] = "raise",
        progress: Progress | None = None,
    ) -> Float32[np.ndarray, "images projection"]: ...

    @overload
    def encode_images(
        self, images: Any, *, batch_size: int = 32, on_error: Literal["skip"], progress: Progress | None = None
    ) -> Embedded: ...

    def encode_images(
        self, images: Any, *, batch_size: int = 32, on_error: OnError = "raise", progress: Progress | None = None
    ) -> Float32[np.ndarray, "images projection"] | Embedded:
        """Returns unit embeddings, one row per picture.

        Args:
            images: Paths, PIL images, bytes, or arrays, as `AltCLIPImageProcessor` takes them: one, a list or iterator
                of any depth, or an array with a batch axis. All are turned as their camera says, unless the
                processor's `apply_exif_orientation` is False.
            batch_size: How many pictures are prepared and shown to the model at once.
            on_error: What to do with a picture that cannot be read: "raise" its error, or "skip" it. With "skip" the
                result is an `Embedded`: the embeddings of the others, their indices, and what was skipped and why.
            progress: Called with the number of pictures done.

        Raises:
            ImageError: a picture cannot be read, and none is to be skipped; the message names it.
            ValueError: `batch_size` is less than 1.
        """
        found = self.encoder.embed_images(images, batch_size, on_error=on_error, progress=progress)
        return found if on_error == "skip" else found.embeddings

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
        embeddings = self.encoder.embed_images(images, progress=progress).embeddings
        logits = scale * embeddings @ self.encode_labels(labels, templates).T
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

    def __repr__(self) -> str:
        leaves = list(flatten(self.params).values())
        count = sum(leaf.size for leaf in leaves)
        forms = sorted({getattr(leaf, "scheme", str(leaf.dtype)) for leaf in leaves})
        devices = devices_of(self.params)
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

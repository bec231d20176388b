"""One engine for embeddings: any number of texts and pictures, on one device or on a mesh.

Batches have one of a few shapes, so that nothing is compiled after the first of them, and the next one is prepared
while the devices compute.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Float32, Int, UInt8

from altclip_jax.machine import default_device
from altclip_jax.model.inputs import AnyArray, check_texts
from altclip_jax.model.two_towers import normalize
from altclip_jax.parallel import AXES, BATCH, batch_devices, gathered, local_mesh, param_shardings, sharding
from altclip_jax.pretrained import TwoTowerModel
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.processing.image_files import array_layout, walk_pictures
from altclip_jax.processing.processor import AltCLIPProcessor
from altclip_jax.processing.tokenizer import BaseTokenizer, positive
from altclip_jax.weights.convert import Params

LENGTH_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
CPU_PICTURES = 4  # whose values between two layers stay in a processor's cache; measured: docs/benchmark.md
_IN_FLIGHT = 2  # batches that the devices have, so that they wait for none to be prepared
_WINDOW = 16_384  # texts that are sorted together: memory does not grow with their number
_READING = 128  # tokens whose work is what a batch costs beside its tokens: all parameters are read once for each

OnError = Literal["raise", "skip"]
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A picture that cannot be read."""

    index: int  # its place among all pictures
    name: str  # its file, where it has one
    reason: str


class Embedded(NamedTuple):
    """Embeddings, and which of the items they are of."""

    indices: Int[np.ndarray, " rows"]
    embeddings: Float32[np.ndarray, "rows projection"]  # unit norm
    skipped: tuple[Skipped, ...] = ()


class _Batch(NamedTuple):
    """What the model sees at once, not yet filled up to `rows`."""

    indices: Int[np.ndarray, " items"]
    arrays: tuple[np.ndarray, ...]
    rows: int
    skipped: tuple[Skipped, ...] = ()


class Encoder:
    """Embeds texts and pictures; those of an iterator in batches, with memory for a few of these."""

    def __init__(
        self,
        model: TwoTowerModel,
        params: Params,
        processor: AltCLIPProcessor,
        *,
        mesh: Mesh | Literal["all"] | None = None,
        steady: bool = False,
    ):
        """Puts the parameters where they belong: on a mesh they are cut by the rules of `altclip_jax.parallel`.

        Args:
            model: The model.
            params: Its parameters.
            processor: Prepares texts and pictures; pictures are turned as their camera says, unless its
                `apply_exif_orientation` is False.
            mesh: Devices whose "data" and "fsdp" share the rows of a batch; "all" for one of all local devices. None:
                where the parameters are, or one device. Where it has devices of several processes, all of them embed
                the same items together.
            steady: Fill every batch up to the full number of rows, so that each length of text has one program, and
                pictures have one. Otherwise to a power of two, which suits few items.

        Raises:
            ValueError: a parameter has no rule.
        """
        if mesh == "all":
            mesh = local_mesh()
        if mesh is None:
            mesh = _mesh_of(params)
        else:
            params = jax.device_put(params, param_shardings(mesh, params))
        self.model, self.params, self.processor, self.mesh = model, params, processor, mesh
        self._steady, self._multiple = steady, 1 if mesh is None else batch_devices(mesh)
        self._pictures = processor.image_processor.orient("exif")
        self._place = None if mesh is None else sharding(mesh, BATCH)
        self._encode_texts: Any = functools.partial(_encode_text, model, params, mesh=mesh)
        self._encode_images: Any = functools.partial(
            encode_images, model, params, processor=self._pictures, mesh=mesh, at_once=pictures_at_once(params)
        )

    @property
    def text_limit(self) -> int:
        """To how many tokens texts are cut."""
        limit: int = min(self.processor.tokenizer.model_max_length, self.model.config.text_config.max_tokens)
        return limit

    def embed_texts(
        self, texts: Iterable[str], batch_size: int = 64, *, progress: Progress | None = None
    ) -> Float32[np.ndarray, "texts projection"]:
        """Returns unit embeddings of texts in their order; see `stream_texts`."""
        return self._join(list(self.stream_texts(texts, batch_size, progress=progress))).embeddings

    def embed_images(
        self, images: Any, batch_size: int = 32, *, on_error: OnError = "raise", progress: Progress | None = None
    ) -> Embedded:
        """Returns unit embeddings of pictures in their order; see `stream_images`."""
        return self._join(list(self.stream_images(images, batch_size, on_error=on_error, progress=progress)))

    def embed_prepared(
        self, batches: Iterable[np.ndarray], batch_size: int = 32
    ) -> Float32[np.ndarray, "images projection"]:
        """Returns unit embeddings of pictures that were prepared elsewhere; see `stream_prepared`."""
        return self._join(list(self.stream_prepared(batches, batch_size))).embeddings

    def stream_texts(
        self, texts: Iterable[str], batch_size: int = 64, *, progress: Progress | None = None
    ) -> Iterator[Embedded]:
        """Yields the embeddings of texts, in batches of similar length: their indices say which they are.

        A text longer than the model takes is cut. An iterator is read 16,384 texts ahead.

        Args:
            texts: Strings.
            batch_size: How many texts of 32 tokens the model sees at once; of shorter ones more, of longer ones fewer.
            progress: Called with the number of texts done.

        Raises:
            ValueError: `batch_size` is less than 1, or the tokenizer gives an id that the model has no row for.
        """
        positive("batch_size", batch_size)
        texts = [texts] if isinstance(texts, str) else texts
        return self._run(self._encode_texts, self._text_batches(texts, 32 * batch_size), progress)

    def stream_images(
        self, images: Any, batch_size: int = 32, *, on_error: OnError = "raise", progress: Progress | None = None
    ) -> Iterator[Embedded]:
        """Yields the embeddings of pictures in their order, batch by batch.

        Args:
            images: Paths, PIL images, bytes, or arrays, as `AltCLIPImageProcessor` takes them: one, a list or iterator
                of any depth, or an array with a batch axis. An iterator is read a batch at a time.
            batch_size: How many pictures are prepared, and shown to the model, at once.
            on_error: What to do with a picture that is damaged or not there: "raise" its error, or "skip" it and say so
                in `skipped`.
            progress: Called with the number of pictures done, those that were skipped among them.

        Raises:
            ImageError: a picture cannot be read, and none is to be skipped; the message names it.
            OSError: a file cannot be opened, likewise.
            ValueError: `batch_size` is less than 1, or `on_error` something else.
        """
        positive("batch_size", batch_size)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} is neither 'raise' nor 'skip'.")
        return self._run(self._encode_images, self._image_batches(images, batch_size, on_error), progress)

    def stream_prepared(
        self,
        batches: Iterable[
            UInt8[np.ndarray, "images height width 3"] | Float[np.ndarray, "images channels height width"]
        ],
        batch_size: int = 32,
    ) -> Iterator[Embedded]:
        """Yields the embeddings of batches of pictures that were prepared elsewhere.

        Args:
            batches: Of up to `batch_size` pictures: as bytes, what the image processor's `resize_and_crop` gives, or as
                floats, what a call of it gives.
            batch_size: Pictures of a full batch.
        """

        def batches_of() -> Iterator[_Batch]:
            first = 0
            for pictures in batches:
                indices = np.arange(first, first + len(pictures))
                yield _Batch(indices, (pictures,), self._image_rows(len(pictures), batch_size))
                first += len(pictures)

        return self._run(self._encode_images, batches_of(), None)

    def warmup(self, *, texts: int = 64, images: int = 32) -> int:
        """Compiles all programs that calls with these batch sizes need, and returns how many they are.

        Without `steady` there is one for each power of two of rows; if the only calls are with one text and one
        picture, `warmup(texts=1, images=1)` compiles few.

        Args:
            texts: `batch_size` of texts; 0 for none.
            images: `batch_size` of pictures; 0 for none.
        """
        abstract: Any = jax.ShapeDtypeStruct
        programs: list[tuple[Any, tuple[int, ...], Any]] = []
        if texts:
            for length, full in self._batching(32 * texts).full.items():
                few = {self._whole(padded_size(rows, full)) for rows in range(1, full)} if not self._steady else set()
                programs += [(self._encode_texts, (rows, length), jnp.int32) for rows in sorted({full, *few})]
        if images:
            side, channels = self.model.config.vision_config.image_size, self.model.config.vision_config.num_channels
            as_bytes = channels == 3
            picture = (side, side, channels) if as_bytes else (channels, side, side)
            for rows in sorted({self._image_rows(few, images) for few in range(1, images + 1)}):
                programs.append((self._encode_images, (rows, *picture), jnp.uint8 if as_bytes else jnp.float32))
        for encode, shape, dtype in programs:
            given = [abstract(shape, dtype, sharding=self._place)] * (2 if encode is self._encode_texts else 1)
            function = _encode_text if encode is self._encode_texts else encode_images
            function.lower(*encode.args, *given, **encode.keywords).compile()
        return len(programs)

    def _run(self, encode: Any, batches: Iterable[_Batch], progress: Progress | None) -> Iterator[Embedded]:
        """Yields the embeddings of batches, of which two are on the devices while the next is prepared."""
        waiting: deque[tuple[_Batch, Array | None]] = deque()

        def finish() -> Embedded:
            batch, values = waiting.popleft()
            none = np.zeros((0, self.model.config.projection_dim), np.float32)
            rows = none if values is None else np.asarray(values, np.float32)[: len(batch.indices)]
            if progress:
                progress(len(batch.indices) + len(batch.skipped))
            return Embedded(batch.indices, rows, batch.skipped)

        for batch in batches:
            given = [self._fill(array, batch.rows) for array in batch.arrays]
            waiting.append((batch, encode(*given) if len(batch.indices) else None))
            if len(waiting) >= _IN_FLIGHT:
                yield finish()
        while waiting:
            yield finish()

    def _fill(self, array: np.ndarray, rows: int) -> Any:
        """Returns an array of `rows` rows, which is on the devices of a mesh."""
        if self._place is None or not len(array):
            return pad_rows(array, rows) if len(array) else array
        make: Any = jax.make_array_from_callback
        filled = pad_rows(array, rows)
        return make(filled.shape, self._place, lambda piece: filled[piece])

    def _join(self, batches: Sequence[Embedded]) -> Embedded:
        """Returns all batches as one, in the order of the items."""
        none = np.zeros(0, np.int64)
        indices = np.sort(np.concatenate([none, *(batch.indices for batch in batches)]))
        rows = np.empty((len(indices), self.model.config.projection_dim), np.float32)
        for batch in batches:
            rows[np.searchsorted(indices, batch.indices)] = batch.embeddings
        return Embedded(indices, rows, tuple(skipped for batch in batches for skipped in batch.skipped))

    def _image_batches(self, images: Any, batch_size: int, on_error: OnError) -> Iterator[_Batch]:
        named, first, layout = walk_pictures(images), 0, None
        while batch := list(islice(named, batch_size)):
            layout = layout or array_layout([picture for _, picture in batch])  # the first array tells it for all
            cropped = self._pictures.crop_all(batch, layout, on_error=on_error)
            good, skipped = [], []
            for index, ((name, _), found) in enumerate(zip(batch, cropped, strict=True), first):
                if isinstance(found, Exception):
                    reason = found.strerror if isinstance(found, OSError) and found.strerror else str(found)
                    skipped.append(Skipped(index, name, reason))
                else:
                    good.append((index, found))
            indices = np.array([index for index, _ in good], np.int64)
            pictures = self._stack([picture for _, picture in good])
            yield _Batch(indices, (pictures,), self._image_rows(len(good), batch_size), tuple(skipped))
            first += len(batch)

    def _stack(self, cropped: Sequence[np.ndarray]) -> np.ndarray:
        """Returns pictures as one array: as bytes where all are, else normalised here."""
        shapes = sorted({picture.shape for picture in cropped})
        if len(shapes) > 1:
            raise ValueError(
                f"The pictures have different shapes after preparation, {shapes}, and make no array: leave do_resize"
                " and do_center_crop of the image processor on."
            )
        if all(picture.dtype == np.uint8 and picture.shape[-1] == 3 for picture in cropped):
            return np.stack(cropped) if cropped else np.zeros((0, 1, 1, 3), np.uint8)
        return np.stack([self._pictures.normalize(picture) for picture in cropped]).astype(np.float32)

    def _image_rows(self, pictures: int, batch_size: int) -> int:
        return self._whole(batch_size if self._steady else padded_size(pictures, batch_size))

    def _text_batches(self, texts: Iterable[str], tokens: int) -> Iterator[_Batch]:
        batching, rest, first = self._batching(tokens), iter(texts), 0
        while window := list(islice(rest, _WINDOW)):
            ids = self.processor.tokenizer(window, truncation=True, max_length=self.text_limit)["input_ids"]
            for batch in batching.batches([len(row) for row in ids]):
                arrays = self._pad_tokens([ids[place] for place in batch.places], batch.length)
                check_texts(self.model.config.text_config, *arrays)  # here, where every process has all of them
                yield _Batch(first + batch.places, arrays, batch.rows)
            first += len(window)

    def _batching(self, tokens: int) -> TokenBatching:
        tokenizer, limit = self.processor.tokenizer, self.text_limit
        return TokenBatching(tokenizer, limit, tokens=tokens, steady=self._steady, multiple=self._multiple)

    def _pad_tokens(self, ids: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns input_ids and attention_mask."""
        tokenizer = self.processor.tokenizer
        values = np.full((len(ids), length), tokenizer.pad_token_id, np.int32)
        mask = np.zeros((len(ids), length), np.int32)
        for row, text in enumerate(ids):
            where = slice(0, len(text)) if tokenizer.padding_side == "right" else slice(length - len(text), length)
            values[row, where] = text
            mask[row, where] = 1
        return values, mask

    def _whole(self, rows: int) -> int:
        return -(-max(rows, 1) // self._multiple) * self._multiple


def encode_text(
    model: TwoTowerModel,
    params: Params,
    input_ids: Int[AnyArray, "texts sequence"],
    mask: Int[AnyArray, "texts sequence"],
    mesh: Mesh | None = None,
) -> Float[Array, "texts projection"]:
    """Returns unit embeddings of tokenized texts, float32.

    Raises:
        ValueError: an id without a row, a text longer than the position table, or a mask of another shape.
    """
    check_texts(model.config.text_config, input_ids, mask)
    embeddings: Array = _encode_text(model, params, input_ids, mask, mesh=mesh)
    return embeddings


@functools.partial(jax.jit, static_argnums=0, static_argnames="mesh")
def _encode_text(
    model: TwoTowerModel, params: Params, input_ids: Array, mask: Array, mesh: Mesh | None = None
) -> Array:
    params = params if mesh is None else gathered(mesh, params)
    features: Any = model.apply({"params": params}, input_ids, mask, method="get_text_features")
    return _whole_on(mesh, normalize(features))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("at_once", "processor", "mesh"))
def encode_images(
    model: TwoTowerModel,
    params: Params,
    pixel_values: Float[AnyArray, "images channels height width"] | UInt8[AnyArray, "images height width 3"],
    at_once: int | None = None,
    processor: AltCLIPImageProcessor | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "images projection"]:
    """Returns unit embeddings of prepared pictures, float32.

    Args:
        model: The model.
        params: Its parameters.
        pixel_values: The pictures; with a processor they may be bytes, as its `resize_and_crop` gives them.
        at_once: So many of them go through all layers before the next ones do (`pictures_at_once`); None: all.
        processor: Says how bytes are normalised.
        mesh: Over which the parameters are cut and the pictures shared out.
    """
    params = params if mesh is None else gathered(mesh, params)
    embed: Any = functools.partial(model.apply, {"params": params}, method="get_image_features")
    pictures: Any = pixel_values
    if processor is not None and pictures.dtype == jnp.uint8:
        pictures = normalize_bytes(pictures, processor)
    if at_once is None or len(pictures) < 2 * at_once:
        return _whole_on(mesh, normalize(embed(pictures)))
    whole = len(pictures) // at_once * at_once
    groups, rest = jnp.split(pictures, [whole])
    found = jax.lax.map(embed, groups.reshape(-1, at_once, *groups.shape[1:])).reshape(whole, -1)
    return _whole_on(mesh, normalize(jnp.concatenate([found, embed(rest)]) if len(rest) else found))


def _whole_on(mesh: Mesh | None, rows: Array) -> Array:
    """Inside jit: rows that every device has, and so every process."""
    constrain: Any = jax.lax.with_sharding_constraint
    whole: Array = rows if mesh is None else constrain(rows, sharding(mesh))
    return whole


def _mesh_of(params: Params) -> Mesh | None:
    """Returns the mesh of our axes that parameters are on, if they are on one."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, Array) and isinstance(leaf.sharding, NamedSharding):
            mesh: Any = leaf.sharding.mesh
            return mesh if mesh.axis_names == AXES else None
    return None


def normalize_bytes(
    pictures: UInt8[AnyArray, "images height width 3"], processor: AltCLIPImageProcessor
) -> Float32[Array, "images 3 height width"]:
    """Inside jit: what `AltCLIPImageProcessor.normalize` gives, bit for bit: it is looked up for each byte."""
    every = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    table = processor.normalize(every)[:, 0].astype(np.float32)
    channels = [jnp.asarray(table[c]).at[pictures[..., c]].get(mode="promise_in_bounds") for c in range(3)]
    return jnp.stack(channels, axis=1)


def pictures_at_once(params: Params) -> int | None:
    """Returns how many pictures of a batch are best encoded before the next ones: few on one CPU, or None for all.

    An accelerator is filled by a large batch. A processor is busy with one picture already, and with more of them what
    passes from layer to layer goes by way of the memory. Pictures that are cut over devices stay where they are.
    """
    devices = devices_of(params) or {default_device()}
    return CPU_PICTURES if len(devices) == 1 and all(device.platform == "cpu" for device in devices) else None


def devices_of(params: Params) -> set[jax.Device]:
    """Returns the devices that parameters are on: none has those that are numpy arrays."""
    return {device for leaf in jax.tree.leaves(params) if isinstance(leaf, Array) for device in leaf.devices()}


def length_buckets(longest: int) -> tuple[int, ...]:
    """Returns the lengths to which texts are padded, ending with the longest a model takes."""
    return (*(length for length in LENGTH_BUCKETS if length < longest), longest)


def padded_size(rows: int, batch_size: int) -> int:
    """Returns the number of rows a batch is padded to: a power of two, or `batch_size`."""
    return min(batch_size, 1 << (rows - 1).bit_length())


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Repeats the last row until there are `rows`: real inputs, so that nothing unusual is computed."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if len(array) < rows else array


class TokenBatch(NamedTuple):
    """Texts that the model sees at once, padded to `length` tokens and `rows` rows."""

    places: Int[np.ndarray, " texts"]
    rows: int
    length: int


class TokenBatching:
    """Cuts tokenized texts into batches of about the same number of tokens, each for texts of similar length.

    What does not fill a batch of its length goes with the rest of longer ones where that is less work than batches of
    their own.

    Attributes:
        full: The rows of a full batch, by the length of its texts.
    """

    def __init__(
        self, tokenizer: BaseTokenizer, limit: int, *, tokens: int = 2048, steady: bool = False, multiple: int = 1
    ):
        """Decides the shapes.

        Args:
            tokenizer: Of the model.
            limit: To how many tokens texts are cut.
            tokens: Of a batch, padding included.
            steady: Fill every batch up to the full number of rows; otherwise to a power of two.
            multiple: Of which the number of rows is one, such as the number of devices.

        Raises:
            ValueError: no token, or no row.
        """
        if min(limit, tokens, multiple) < 1:
            raise ValueError(f"limit={limit}, tokens={tokens} and multiple={multiple} must be at least 1.")
        self._tokenizer, self._steady, self._multiple = tokenizer, steady, multiple
        # powers of two rows, so that few shapes are compiled
        self.full = {length: self._whole(1 << (tokens // length).bit_length() >> 1) for length in length_buckets(limit)}

    def batches(self, lengths: Sequence[int]) -> Iterator[TokenBatch]:
        """Yields batches, full ones first, in which each text has its place once.

        Args:
            lengths: The tokens of each text, at most the limit.
        """
        sizes = np.asarray(lengths, np.int64)
        order = np.argsort(sizes, kind="stable")
        ends = np.searchsorted(sizes[order], list(self.full), "right").tolist()
        rests: list[np.ndarray] = []
        for (length, full), (start, end) in zip(self.full.items(), pairwise([0, *ends]), strict=True):
            whole = start + (end - start) // full * full
            yield from self._cut(order[start:whole], length)
            rests.append(order[whole:end])
        for first, last in self._join([len(rest) for rest in rests]):
            yield from self._cut(np.concatenate(rests[first : last + 1]), list(self.full)[last])

    def _cut(self, places: Int[np.ndarray, " texts"], length: int) -> Iterator[TokenBatch]:
        full = self.full[length]
        for start in range(0, len(places), full):
            part = places[start : start + full]
            yield TokenBatch(part, self._rows(len(part), full), length)

    def _join(self, counts: Sequence[int]) -> list[tuple[int, int]]:
        """Returns which neighbouring lengths, first and last, share batches, so that the work is least.

        None do where padding comes first: a text's first token is pooled, which then is padding or is not by its length
        alone, whatever else is in the batch.
        """
        best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]  # for so many of the lengths
        alone = self._tokenizer.padding_side == "left"
        for last, length in enumerate(self.full):
            ways = []
            for first in range(last if alone else 0, last + 1):
                work, joined = best[first]
                texts = sum(counts[first : last + 1])
                own = [(first, last)] if texts else []
                ways.append((work + self._work(texts, length), [*joined, *own]))
            best.append(min(ways, key=lambda way: way[0]))
        return best[-1][1]

    def _work(self, texts: int, length: int) -> int:
        """Returns what texts cost that are padded to a length."""
        full = self.full[length]
        whole, rest = divmod(texts, full)
        return whole * (full * length + _READING) + (self._rows(rest, full) * length + _READING if rest else 0)

    def _rows(self, texts: int, full: int) -> int:
        return full if self._steady else self._whole(padded_size(texts, full))

    def _whole(self, rows: int) -> int:
        return -(-max(rows, 1) // self._multiple) * self._multiple

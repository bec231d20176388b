"""Encoders compiled ahead of time, on one device or a mesh; pictures may travel to the devices as bytes.

A program is compiled once for each shape, and its batches are begun before the last ones are done.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Int, UInt8

from altclip_jax.inference import encoders
from altclip_jax.inference.encoders import Encoding
from altclip_jax.model.inputs import check_texts
from altclip_jax.parallel import BATCH, batch_devices, gathered, param_shardings, sharding
from altclip_jax.pretrained import TwoTowerModel
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.weights.convert import Params

Kind = Literal["text", "pixels", "bytes"]


class CompiledEncoders:
    """The encoders of a model on its devices, with the embeddings of the plain call for any number of rows.

    Attributes:
        multiple: The rows of a batch are filled up to one of this: the devices that share them.
    """

    def __init__(
        self,
        model: TwoTowerModel,
        params: Params,
        *,
        mesh: Mesh | None = None,
        image_processor: AltCLIPImageProcessor | None = None,
    ):
        """Puts the parameters where they belong: on a mesh they are cut by the rules of `altclip_jax.parallel`.

        Args:
            model: The model.
            params: Its parameters.
            mesh: Devices of this process; rows are dealt along "data" and "fsdp". None: one device.
            image_processor: How pictures given as bytes are rescaled and normalised on the devices.

        Raises:
            ValueError: the mesh has devices of other processes, or a parameter has no rule.
        """
        self._model, self._mesh, self._image_processor = model, mesh, image_processor
        self.multiple = 1 if mesh is None else batch_devices(mesh)
        if mesh is not None:
            if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
                raise ValueError(
                    "The mesh of encoders has devices of other processes: make it of jax.local_devices(), and give each"
                    " process rows of its own."
                )
            params = jax.device_put(params, param_shardings(mesh, params))
        self._params = params
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._jitted = {kind: jax.jit(function) for kind, function in self._functions().items()}

    @property
    def programs(self) -> int:
        """How many shapes were compiled."""
        return len(self._programs)

    def text(self, input_ids: Int[np.ndarray, "texts sequence"], mask: Int[np.ndarray, "texts sequence"]) -> Encoding:
        """Begins to encode tokenized texts.

        Raises:
            ValueError: an id without a row, a text longer than the position table, or a mask of another shape.
        """
        check_texts(self._model.config.text_config, input_ids, mask)
        return self._begin("text", input_ids.astype(np.int32), mask.astype(np.int32))

    def images(
        self,
        pictures: Float[np.ndarray, "images channels height width"] | UInt8[np.ndarray, "images height width channels"],
        rows: int | None = None,
    ) -> Encoding:
        """Begins to encode pictures.

        Args:
            pictures: What the image processor's call gives, or as bytes what its `resize_and_crop` gives.
            rows: To which the batch is filled up, so that a smaller last one has no shape of its own.

        Raises:
            ValueError: they are bytes, and there is no image processor.
        """
        kind: Kind = "bytes" if pictures.dtype == np.uint8 else "pixels"
        filled = encoders.pad_rows(pictures, rows) if rows and len(pictures) else pictures
        return self._begin(kind, filled)._replace(rows=len(pictures))

    def warmup(
        self, *, texts: Iterable[tuple[int, int]] = (), images: Iterable[int] = (), as_bytes: bool = False
    ) -> None:
        """Compiles ahead of time, so that nothing is when batches of these shapes come.

        Args:
            texts: (rows, length) of batches of texts.
            images: Rows of batches of pictures.
            as_bytes: These are given as bytes.
        """
        for rows, length in texts:
            self._program("text", (((self._whole(rows), length), jnp.int32),) * 2)
        vision = self._model.config.vision_config
        side, channels = vision.image_size, vision.num_channels
        for rows in images:
            whole = self._whole(rows)
            shape = (whole, side, side, channels) if as_bytes else (whole, channels, side, side)
            self._program("bytes" if as_bytes else "pixels", ((shape, jnp.uint8 if as_bytes else jnp.float32),))

    def _begin(self, kind: Kind, *arrays: np.ndarray) -> Encoding:
        rows = len(arrays[0])
        if not rows:
            return Encoding(jnp.zeros((0, self._model.config.projection_dim), jnp.float32), 0)
        whole = [encoders.pad_rows(array, self._whole(rows)) for array in arrays]
        there = None if self._mesh is None else sharding(self._mesh, BATCH)
        placed = [jax.device_put(array, there) for array in whole]  # which makes float32 of float64
        program = self._program(kind, tuple((array.shape, array.dtype) for array in placed))
        return Encoding(program(self._params, *placed), rows)

    def _program(self, kind: Kind, given: tuple[tuple[tuple[int, ...], Any], ...]) -> Any:
        if kind == "bytes" and self._image_processor is None:
            raise ValueError("Pictures were given as bytes: say with image_processor= how they are normalised.")
        key = (kind, *((shape, np.dtype(dtype)) for shape, dtype in given))
        if key not in self._programs:
            abstract: Any = jax.ShapeDtypeStruct
            there = None if self._mesh is None else sharding(self._mesh, BATCH)
            shapes = [abstract(shape, dtype, sharding=there) for shape, dtype in given]
            self._programs[key] = self._jitted[kind].lower(self._params, *shapes).compile()
        return self._programs[key]

    def _functions(self) -> dict[Kind, Any]:
        model, mesh, processor = self._model, self._mesh, self._image_processor
        at_once = encoders.pictures_at_once(self._params)

        def whole(params: Params) -> Params:
            return params if mesh is None else gathered(mesh, params)

        def text(params: Params, ids: Array, mask: Array) -> Any:
            return encoders.encode_text(model, whole(params), ids, mask)

        def pixels(params: Params, values: Array) -> Any:
            return encoders.encode_images(model, whole(params), values, at_once=at_once)

        def as_bytes(params: Params, values: Array) -> Any:
            assert processor is not None
            return encoders.encode_images(model, whole(params), normalized(values, processor), at_once=at_once)

        return {"text": text, "pixels": pixels, "bytes": as_bytes}

    def _whole(self, rows: int) -> int:
        return -(-rows // self.multiple) * self.multiple


def normalized(
    pictures: UInt8[Array, "images height width 3"], processor: AltCLIPImageProcessor
) -> Float32[Array, "images 3 height width"]:
    """Inside jit: what `AltCLIPImageProcessor.normalize` does, equal to 1e-6: its float64 is float32 here."""
    values = pictures.astype(jnp.float32)
    if processor.do_rescale:
        values = values * np.float32(processor.rescale_factor)
    if processor.do_normalize:
        mean, std = (
            np.broadcast_to(np.asarray(value, np.float32), (3,)).reshape(1, 1, 1, 3)
            for value in (processor.image_mean, processor.image_std)
        )
        values = (values - mean) / std
    return values.transpose(0, 3, 1, 2)

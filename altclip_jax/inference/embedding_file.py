"""Embeddings and the names of their rows in one file, whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from altclip_jax.files.json_file import write_bytes


def write_embeddings(
    path: Path,
    *,
    images: Float32[np.ndarray, "images projection"],
    image_names: Sequence[str],
    texts: Float32[np.ndarray, "texts projection"],
    text_names: Sequence[str],
) -> None:
    """Writes an .npz (arrays images, image_names, texts, text_names) or a .safetensors (names as JSON in its metadata).

    Raises:
        ValueError: the file name has another ending.
        OSError: the file system refused; what stood there before is as it was.
    """
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(
            buffer,
            images=images,
            texts=texts,
            image_names=np.asarray(image_names, np.str_),
            text_names=np.asarray(text_names, np.str_),
        )
        data = buffer.getvalue()
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save

        names = {"image_names": json.dumps(list(image_names)), "text_names": json.dumps(list(text_names))}
        data = save({"images": images, "texts": texts}, metadata=names)
    else:
        raise ValueError(
            f"{path} ends neither in .npz nor in .safetensors, the two forms embeddings are written in; for a folder"
            " with a dot in its name, write a / behind it."
        )
    write_bytes(path, data)

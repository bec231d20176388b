"""Compare our codes with those of torchao's quantization primitives; a part of scripts/benchmark/quantization.py."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import ml_dtypes
import numpy as np

from altclip_jax.assets import default_checkpoint
from altclip_jax.quantization.codes import Int4Codes, int4_codes, int8_codes
from altclip_jax.weights.readers import open_checkpoint

GROUP = 128
BF16 = ml_dtypes.bfloat16
_SHOWN = tuple(f".1.{name}.weight" for name in ("attention.self.query", "intermediate.dense", "mlp.fc1", "mlp.fc2"))


def matrices() -> dict[str, np.ndarray]:
    """Return random matrices, and those of one layer of each tower of the embedded model, in PyTorch's layout."""
    rng = np.random.default_rng(0)
    found = {
        "normal, 1024 x 4096": rng.standard_normal((1024, 4096), np.float32) / 32,
        "Student's t (3), 1024 x 1024": np.float32(rng.standard_t(3, (1024, 1024))) / 32,
    }
    with open_checkpoint(default_checkpoint()) as checkpoint:
        for name, info in checkpoint.infos.items():
            if name.endswith(_SHOWN) and info.shape[1] % GROUP == 0:
                short = name.replace("roberta.encoder.", "").replace("encoder.", "").removesuffix(".weight")
                found[f"`{short}`"] = checkpoint.read(name).astype(np.float32)
    return found


def is_installed() -> bool:
    """Tell whether torchao is there to compare with."""
    return importlib.util.find_spec("torchao") is not None


def compare_codes() -> dict[str, Any]:
    """Return our errors, and where torchao is installed its codes beside ours."""
    installed = is_installed()
    version = importlib.metadata.version("torchao") if installed else None
    found: dict[str, Any] = {"torchao": version, "int8_codes": [], "int4_codes": []}
    for name, values in matrices().items():
        row = {"matrix": name, "scheme": "int8", **errors8(values)}
        found["int8_codes"].append(row | ({"torchao": torchao_int8(values)} if installed else {}))
        for kind, dtype in (("float32", np.float32), ("bfloat16", BF16)):
            row = {"matrix": name, "scheme": f"int4, {kind} scales", **errors4(values, dtype)}
            found["int4_codes"].append(row | ({"torchao": torchao_int4(values, dtype)} if installed else {}))
    return found


def errors8(values: np.ndarray) -> dict[str, float]:
    """Return our errors, without and with the search."""
    plain, best = (int8_codes(values, search=search) for search in (False, True))
    return {
        "min_max": lost(plain.codes * plain.scales, values),
        "search": lost(best.codes * best.scales, values),
    }


def errors4(values: np.ndarray, dtype: Any) -> dict[str, float]:
    """Return our errors, without and with the search."""
    plain, best = (int4_codes(values, GROUP, search=search, scale_dtype=dtype) for search in (False, True))
    return {"min_max": lost(back(plain), values), "search": lost(back(best), values)}


def torchao_int8(values: np.ndarray) -> dict[str, float]:
    """Return how torchao's int8 weights differ from ours without a search."""
    import torch
    from torchao.quantization import quant_primitives as primitives

    weight, block = torch.tensor(values), (1, values.shape[1])
    scale, zero = primitives.choose_qparams_affine(
        weight,
        primitives.MappingType.SYMMETRIC,
        block,
        torch.int8,
        eps=torch.finfo(torch.float32).eps,
        zero_point_dtype=torch.int64,
    )
    codes = primitives.quantize_affine(weight, block, scale, zero, torch.int8).numpy()
    scales = scale.numpy()[:, None]
    ours = int8_codes(values, search=False)
    return {
        "equal_codes": float(np.mean(codes == ours.codes)),
        "largest_code_difference": int(np.abs(codes.astype(int) - ours.codes).max()),
        "scales": float(np.abs(ours.scales / scales - 1).max()),
        "error": lost(codes * scales, values),
    }


def torchao_int4(values: np.ndarray, dtype: Any) -> dict[str, float]:
    """Return how torchao's int4 weights differ from ours without a search.

    In bfloat16 torchao's arithmetic is bfloat16 throughout, as in its int4_weight_only; ours is float32, and only what
    is stored is rounded.
    """
    import torch
    from torchao.quantization import quant_primitives as primitives

    kind = torch.bfloat16 if dtype == BF16 else torch.float32
    weight, block = torch.tensor(values).to(kind), (1, GROUP)
    scale, zero = primitives._choose_qparams_affine_tinygemm(
        weight, primitives.MappingType.ASYMMETRIC, block, torch.int32, 0, 15, 1e-6, kind, kind
    )
    codes = primitives._quantize_affine_tinygemm(weight, block, scale, zero, torch.int32, 0, 15).numpy()
    given = np.float32(weight.float().numpy())
    ours = int4_codes(given, GROUP, search=False, scale_dtype=dtype)
    scales, zeros = (part.float().numpy().reshape(ours.scales.shape) for part in (scale, zero))
    theirs = Int4Codes(codes.astype(np.uint8), scales, zeros)
    return {
        "equal_codes": float(np.mean(codes == ours.codes)),
        "largest_code_difference": int(np.abs(codes - ours.codes.astype(int)).max()),
        "scales": float(np.abs(np.float32(ours.scales) / scales - 1).max()),
        "zero_points": float(np.abs((np.float32(ours.zero_points) - zeros) / scales).max()),
        "error": lost(back(theirs), values),
    }


def back(found: Int4Codes) -> np.ndarray:
    """Return the values that codes stand for."""
    steps = found.codes.astype(np.float32).reshape(*found.scales.shape, GROUP) - 8
    values = steps * np.float32(found.scales)[..., None] + np.float32(found.zero_points)[..., None]
    return values.reshape(found.codes.shape)


def lost(found: np.ndarray, values: np.ndarray) -> float:
    """Return the norm of the difference over the norm."""
    return float(np.linalg.norm(found - values) / np.linalg.norm(values))

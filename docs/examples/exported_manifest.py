"""What the manifest beside exported programs says, and whether files, inputs and this machine are as it says."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jaxlib
import numpy as np
from prepare_inputs import parse_json

FORMAT, VERSION = "altclip_jax.programs", 1


class ExportError(ValueError):
    """A folder that cannot be run here, or inputs that its programs do not take; the message says why."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder whose programs this jax can run on this process' platform.

    Raises:
        ExportError: there is none, or one of another version or platform.
    """
    path = folder / "manifest.json"
    try:
        manifest: Any = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"There is no {path}: expected what `altclip export --format stablehlo` writes.") from None
    except ValueError as error:
        raise ExportError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ExportError(f"{path} does not tell of programs that altclip_jax exported.")
    if manifest.get("version") != VERSION:
        raise ExportError(
            f"{path} is of version {manifest.get('version')} and this loader reads {VERSION}: take the loader of the"
            " altclip_jax that wrote it."
        )
    needed, made_by = manifest["calling_convention_version"], manifest["made_by"]
    least = jax.export.minimum_supported_calling_convention_version
    most = jax.export.maximum_supported_calling_convention_version
    if not least <= needed <= most:
        raise ExportError(
            f"{folder} was exported by jax {made_by['jax']} with calling convention {needed}, and jax {jax.__version__}"
            f" here runs {least} to {most}: install jax {made_by['jax']}, or export again."
        )
    if _release(jax.__version__) < _release(made_by["jax"]):
        raise ExportError(
            f"{folder} was exported by jax {made_by['jax']}, and jax {jax.__version__} here is older: programs are read"
            " by the release that wrote them or a later one."
        )
    here = jax.export.default_export_platform()
    if here not in manifest["platforms"]:
        there = ", ".join(manifest["platforms"])
        raise ExportError(f"{folder} was exported for {there}, and this process runs on {here}: export it for that.")
    return manifest


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


def described_program(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns what a manifest says of a program.

    Raises:
        ExportError: there is none of that name.
    """
    programs: dict[str, Any] = manifest["programs"]
    if name not in programs:
        raise ExportError(f"There is no program {name!r} in the folder; it has {', '.join(programs)}.")
    return dict(programs[name])


def checked_file(folder: Path, described: Mapping[str, Any], verify: bool) -> Path:
    """Returns the path of a file that is as the manifest says; without `verify` its bytes are only counted.

    Raises:
        ExportError: it is not.
    """
    path = folder / described["file"]
    if not path.is_file():
        raise ExportError(f"There is no {path}, of which manifest.json tells: copy the whole folder.")
    size = path.stat().st_size
    if size != described["bytes"]:
        raise ExportError(f"{path} has {size:,} bytes where manifest.json says {described['bytes']:,}: copy it again.")
    if verify:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != described["sha256"]:
                raise ExportError(f"{path} is damaged, its checksum is not that in manifest.json: copy it again.")
    return path


def check_inputs(
    manifest: Mapping[str, Any], program: str, inputs: Mapping[str, Any]
) -> tuple[list[np.ndarray], dict[str, int]]:
    """Returns the inputs of a program in order, and the size of each axis that has a name.

    Raises:
        ExportError: an input is missing or unknown, or has a shape, dtype or ids that the program does not take.
    """
    described = described_program(manifest, program)["inputs"]
    names = [given["name"] for given in described]
    if set(names) != set(inputs):
        raise ExportError(f"The program {program!r} takes {', '.join(names)}; got {', '.join(inputs) or 'nothing'}.")
    sizes: dict[str, int] = {}
    arrays = [np.asarray(inputs[name]) for name in names]
    for given, array in zip(described, arrays, strict=True):
        name, axes = given["name"], given["shape"]
        if array.dtype.name != given["dtype"]:
            raise ExportError(f"{name} must be {given['dtype']}, got {array.dtype.name}.")
        wrong = array.ndim != len(axes) or any(
            size != (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
            for axis, size in zip(axes, array.shape, strict=True)
        )
        if wrong:
            known = ", ".join(f"{axis} = {size}" for axis, size in sizes.items() if axis in axes)
            wanted = f"({', '.join(map(str, axes))})" + (f" with {known}" if known and name != names[0] else "")
            raise ExportError(f"{name} must have shape {wanted}, got {array.shape}.")
    for axis, size in sizes.items():
        least, most = manifest["axes"][axis]["min"], manifest["axes"][axis]["max"]
        if size < least or (most is not None and size > most):
            bounds = f"at least {least}" if most is None else f"from {least} to {most}"
            raise ExportError(f"The program {program!r} takes {axis} of {bounds}, got {size}.")
    if "input_ids" in names:
        ids, rows = arrays[names.index("input_ids")], manifest["texts"]["vocabulary"]
        if ids.min() < 0 or ids.max() >= rows:
            raise ExportError(f"input_ids must be from 0 to {rows - 1}, got {ids.min()} to {ids.max()}.")
    return arrays, sizes


def fingerprint() -> dict[str, str]:
    """Returns what must be equal to where executables were compiled."""
    device, flags = jax.local_devices()[0], ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    told = f"{platform.machine()} {platform.processor()} {flags}"
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "platform": device.platform,
        "device": device.device_kind,
        "runtime": device.client.platform_version,
        "processor": f"{platform.machine() or 'unknown'}-{hashlib.sha256(told.encode()).hexdigest()[:8]}",
    }

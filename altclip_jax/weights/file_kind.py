"""What a file that should hold weights really is, told from its first bytes, and what to do about it."""

from pathlib import Path

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.weights.stored import StoredFile

SAFETENSORS = "a safetensors file"
ZIP = "a zip archive, as torch.save has written since torch 1.6"

_PLAIN_PICKLE = "a pickle, which could run any code when loaded, and is not read here"
_LEGACY_TORCH = "written by torch.save in its format from before torch 1.6, which is not read here"
_RESAVE = "where you trust it, load and save it again: torch.save(torch.load(old, weights_only=True), new)"

# (first bytes, what such a file is, what to do)
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, a few lines of text that stand for the weights",
        "fetch the real file, for example with `git lfs pull`",
    ),
    (b"PK\x03\x04", ZIP, "if torch wrote it, name it .bin"),
    (b"PK\x05\x06", "an empty zip archive", "fetch or save it again"),
    # Protocol 2, then the long integer with which the old format begins.
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", _LEGACY_TORCH, _RESAVE),
    *((bytes([0x80, protocol]), _PLAIN_PICKLE, _RESAVE) for protocol in range(2, 6)),
    (b"\x1f\x8b", "compressed with gzip", "decompress it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as TensorFlow's h5 weights are", "convert it with transformers"),
    (b"GGUF", "a GGUF file", "use the safetensors or PyTorch weights of the model"),
)
_TAR = (257, b"ustar")


def require_kind(file: StoredFile, wanted: str) -> None:
    """Raise a CheckpointError that says what the file is unless it looks like `wanted`.

    Args:
        file: the opened file.
        wanted: `SAFETENSORS` or `ZIP`.
    """
    head = file.read_bytes(0, min(file.size, 512))
    found, advice = _kind(head, file.size)
    if found == wanted:
        return
    if found == SAFETENSORS:
        advice = "name it .safetensors"
    raise CheckpointError(f"{file.path} is {found}; {wanted} was expected. To go on: {advice}")


def open_regular(path: Path) -> StoredFile:
    """Open a file that can be read at any offset.

    Raises:
        CheckpointError: the path is a folder, a pipe or a device.
        OSError: the file system refused; a link that leads nowhere is FileNotFoundError.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link to {path.readlink()}, which is not there: fetch it again")
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device or pipe"
        raise CheckpointError(f"{path} is a {kind}; a file of weights was expected")
    return StoredFile(path)


def _kind(head: bytes, size: int) -> tuple[str, str]:
    # First, because the length with which a safetensors file begins may look like anything.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return SAFETENSORS, ""
    again = "fetch or save it again"
    if not head:
        return "empty", again
    for magic, kind, advice in _KINDS:
        if head.startswith(magic):
            return kind, advice
    if head[_TAR[0] :].startswith(_TAR[1]):
        return "a tar archive", f"unpack it, or if torch wrote it (before 0.2), {_RESAVE}"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        return "a web page, perhaps the error page of a download that failed", again
    if text.startswith((b"{", b"[")):
        return "JSON text, perhaps the error message of a download that failed", again
    return f"of an unknown kind (it begins with {head[:8].hex(' ')})", again

"""Checkpoint files are interchangeable with torch, safetensors and transformers."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AltCLIPConfig, AltCLIPModel

from altclip_jax.files.whole import Change
from altclip_jax.weights.readers import CheckpointError, open_checkpoint
from altclip_jax.weights.safetensors_file import TensorSource, add_weights, write_safetensors

CHECKPOINT_FILES = Path(__file__).parents[1] / "data" / "checkpoint_files"
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
TINY = {
    "text_config": {
        **{"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 12, "max_position_embeddings": 10, "project_dim": 6},
    },
    "vision_config": {
        **{"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"image_size": 8, "patch_size": 4},
    },
    "projection_dim": 5,
}


def raw(tensor: torch.Tensor) -> tuple[tuple[int, ...], str, bytes]:
    """Shape, dtype and bytes of a tensor, comparable with those of an array."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), flat.numpy().tobytes()


def read_raw(path: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    with open_checkpoint(path) as checkpoint:
        arrays = {name: checkpoint.read(name) for name in checkpoint.infos}
    return {name: (array.shape, array.dtype.name, array.tobytes()) for name, array in arrays.items()}


def random_state(seed: int) -> dict[str, torch.Tensor]:
    """Tensors of every dtype, many of them views that share a storage."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for number, dtype in enumerate(DTYPES):
        base = torch.randint(-3, 9, (4, 3, 5), generator=generator).to(dtype)
        state |= {
            f"{number}.base": base,
            f"{number}.tied": base,
            f"{number}.permuted": base.permute(2, 0, 1),
            f"{number}.strided": base[1::2, :, ::3],
            f"{number}.column": base[:, 1],
            f"{number}.element": base[3, 2, 4],
            f"{number}.none": base[2:2],
            f"{number}.expanded": base[:1, :1].expand(2, 3, 5),
            f"{number}.windows": base.flatten().unfold(0, 4, 2),
        }
    return state


@pytest.fixture(scope="module")
def tiny_model() -> AltCLIPModel:
    model = AltCLIPModel(AltCLIPConfig(**TINY))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def test_samples_hold_what_torch_reads_from_them():
    state = torch.load(CHECKPOINT_FILES / "state.bin", weights_only=True)
    assert read_raw(CHECKPOINT_FILES / "state.bin") == {name: raw(tensor) for name, tensor in state.items()}
    # weights_only knows protocol 2 alone; the file is our own.
    wrapped = torch.load(CHECKPOINT_FILES / "wrapped_protocol_5.bin", weights_only=False)
    found = read_raw(CHECKPOINT_FILES / "wrapped_protocol_5.bin")
    assert found == {name: raw(tensor) for name, tensor in wrapped["state_dict"].items()}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts_by_torch_are_read_bit_for_bit(protocol, tmp_path):
    state = random_state(protocol)
    torch.save(state, tmp_path / "model.bin", pickle_protocol=protocol)
    assert read_raw(tmp_path / "model.bin") == {name: raw(tensor) for name, tensor in state.items()}


def test_state_dicts_of_modules_and_without_checksums_are_read(tmp_path, tiny_model):
    expected = {name: raw(tensor) for name, tensor in tiny_model.state_dict().items()}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tiny_model.state_dict(), tmp_path / "plain.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_raw(tmp_path / "plain.bin") == expected
    optimizer = torch.optim.AdamW(tiny_model.parameters())
    whole = {"model": dict(tiny_model.named_parameters()), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(whole, tmp_path / "training.pt")
    assert read_raw(tmp_path / "training.pt") == expected


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (torch.ones(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.ones(2, 2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.ones(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
        (torch.ones(2).to(torch.float8_e4m3fn), "torch._utils._rebuild_tensor_v3"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (np.ones(2), "_reconstruct"),
    ],
)
def test_what_is_no_plain_tensor_is_refused_by_name(value, named, tmp_path):
    torch.save({"good": torch.ones(2), "bad": value}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(tmp_path / "model.bin")
    assert named in str(raised.value)


def test_changed_files_are_read_as_torch_reads_them_or_refused(tmp_path):
    """Where both accept a damaged file they agree; 2,000 files with one to three bytes changed."""
    path = tmp_path / "model.bin"
    torch.serialization.set_crc32_options(False)  # or every change of the pickle would be found by its checksum
    try:
        torch.save(torch.load(CHECKPOINT_FILES / "state.bin", weights_only=True), path)
    finally:
        torch.serialization.set_crc32_options(True)
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")  # not changed: a wrong flag there makes torch return unset memory
    read = 0
    for seed in range(2000):
        changed, rng = bytearray(content), random.Random(seed)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(directory)] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            ours = read_raw(path)
        except CheckpointError:
            continue
        try:
            theirs = torch.load(io.BytesIO(changed), weights_only=True)
        except Exception:  # torch raises many kinds
            continue
        read += 1
        assert ours == {name: raw(tensor) for name, tensor in theirs.items()}, seed
    assert read > 100


def test_safetensors_by_torch_are_read_bit_for_bit(tmp_path):
    state = {name: tensor.clone() for name, tensor in random_state(0).items()}
    safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "model.safetensors")
    assert read_raw(tmp_path) == {name: raw(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("max_shard_size", ["5GB", "4KB"])
def test_checkpoints_by_transformers_are_read_bit_for_bit(safe, max_shard_size, tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=max_shard_size)
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.files) > 1 or max_shard_size == "5GB"
    assert read_raw(tmp_path) == {name: raw(tensor) for name, tensor in tiny_model.state_dict().items()}


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 4000])
def test_transformers_reads_what_is_written(max_shard_bytes, tmp_path, tiny_model):
    arrays = {name: tensor.numpy() for name, tensor in tiny_model.state_dict().items()}
    sources = [TensorSource(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()]
    with Change(tmp_path) as change:
        add_weights(change, sources, max_shard_bytes)
        change.install(())
    files = sorted(tmp_path.iterdir())
    assert len(files) > 3 or max_shard_bytes > 4000
    tiny_model.config.save_pretrained(tmp_path)
    model, report = AltCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in model.state_dict().items():
        assert raw(tensor) == raw(tiny_model.state_dict()[name]), name


def test_safetensors_and_torch_read_what_is_written(tmp_path):
    with open_checkpoint(CHECKPOINT_FILES / "state.bin") as checkpoint:
        arrays = {name: checkpoint.read(name) for name in checkpoint.infos}
    sources = [TensorSource(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()]
    write_safetensors(tmp_path / "model.safetensors", sources)
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {name: raw(tensor) for name, tensor in found.items()} == read_raw(CHECKPOINT_FILES / "state.bin")

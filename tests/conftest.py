"""Strict settings for every test, and several fake devices."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ALTCLIP_COMPILATION_CACHE"] = "off"  # tests of the command leave nothing in the user's cache

import hypothesis
import jax
import pytest

# a test that fails by the clock tells of the machine, not of the code; and what fails once fails again
hypothesis.settings.register_profile("altclip", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("altclip")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def clip_bpe(tmp_path_factory):
    """A folder with the vocab.json and merges.txt of OpenAI's CLIP, and nothing else."""
    packed = Path(__file__).parent / "data" / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")[: 1 + 48894]
    symbols = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    pieces = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(line.split()) for line in lines[1:])]
    folder = tmp_path_factory.mktemp("clip_bpe")
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines[1:], ""]), encoding="utf-8")
    return folder


@pytest.fixture
def write_tar():
    """Writes a tar file of {name: bytes}."""

    def write(path, members, form=tarfile.PAX_FORMAT):
        with tarfile.open(path, "w", format=form) as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write

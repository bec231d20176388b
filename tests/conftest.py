"""Strict settings for every test, several fake devices, and one folder of compiled programs for all processes."""

import contextlib
import gzip
import http.server
import importlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import unquote

FLAGS = os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ALTCLIP_COMPILATION_CACHE"] = "off"  # tests of the command leave nothing in the user's cache

import hypothesis
import jax
import numpy as np
import pytest
from jax._src import compiler  # options for all programs have no public door
from PIL import Image

# a test that fails by the clock tells of the machine, not of the code; and what fails once fails again
hypothesis.settings.register_profile("altclip", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("altclip")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_configure(config):
    """Makes a folder for compiled programs, which take most of the time of the tests, and removes it at the end.

    The workers of pytest-xdist and the programs that tests start find it in their environment, where it can be given.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="altclip_jax_compiled_")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


# Compiled so, a program gives the same to rounding, and comes five times as fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
# What these see is compiled as it is for users: their numbers stand for what the model gives, or their programs for
# what is exported, planned or run.
AS_FOR_USERS = (
    *("documents", "export", "inference", "model", "parallel", "parity", "quantization", "training/test_plan.py"),
    *("test_compilation_cache.py", "test_notebooks.py"),
)
quick = False


# What `pytest --fast` leaves out: torch, programs of their own, and the compilation of whole models and runs.
SLOW = """
corpus/test_command.py corpus/test_embed.py corpus/test_search_command.py
documents/test_api.py documents/test_blocks.py documents/test_errors.py documents/test_from_transformers.py
evaluation/benchmarks evaluation/test_command.py
export
inference/test_encoder.py
model/test_clip.py model/test_door.py model/test_quantized.py model/test_stacked.py model/test_transforms.py
parallel/test_distributed.py parallel/test_loading_in_processes.py parallel/test_pmap_encoders.py
parity
quantization/test_files.py quantization/test_narrowing.py
test_annotations.py test_compilation_cache.py test_launch.py test_notebooks.py test_quantized_command.py test_student.py
training/test_checkpoint.py training/test_command.py training/test_evaluate.py training/test_exchange.py
training/test_features.py training/test_going_on.py training/test_mesh_campaign.py training/test_meshes.py
training/test_plan.py training/test_pmapped.py training/test_processes.py training/test_ring.py training/test_run.py
training/test_steps.py
weights/test_pretrained.py weights/test_readers_fuzz.py weights/test_sharded.py weights/test_torch_file_hostile.py
""".split()


def pytest_addoption(parser):
    """Adds --fast, for the inner loop."""
    parser.addoption("--fast", action="store_true", help="leave out the files that take long or need torch")


def pytest_ignore_collect(collection_path, config):
    """Leaves out what is slow, if asked to."""
    return (_path(collection_path) in SLOW and config.getoption("fast")) or None


def pytest_collection_modifyitems(items):
    """Runs together what is compiled as for users."""
    items.sort(key=lambda item: not _as_for_users(item))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Chooses how programs are compiled from here on, in this process and in those that it starts."""
    global quick
    if quick == (not _as_for_users(item)):
        return
    quick = not quick
    jax.clear_caches()
    flags = [f"--{name}={str(value).lower()}" for name, value in QUICK.items()] if quick else []
    os.environ["XLA_FLAGS"] = " ".join([FLAGS, *flags])


def _as_for_users(item):
    return _path(item.path).startswith(AS_FOR_USERS)


def _path(path):
    return path.relative_to(Path(__file__).parent).as_posix()


def _compile_options(*arguments, env_options_overrides=None, asked=compiler.get_compile_options, **keywords):
    options = QUICK | (env_options_overrides or {}) if quick else env_options_overrides
    return asked(*arguments, env_options_overrides=options, **keywords)


compiler.get_compile_options = _compile_options


@pytest.fixture(scope="session")
def program():
    """Imports one of scripts/: program("campaigns.meshes")."""
    sys.path.append(str(Path(__file__).parents[1]))  # at the end: it is the installed library that is tested
    yield lambda name: importlib.import_module(f"scripts.{name}")
    sys.path.pop()


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


class LocalHub:
    """As much of the hub, on this machine, as a download asks for.

    Its repositories have commits, each {name: bytes}; `main` is the newest one, or moves with every question.

    Attributes:
        repositories: By id, their commits in order: {id: {commit: {name: bytes}}}.
        moving: Whether `main` becomes the next commit (and after the last the first) once somebody has asked for it.
        refusal: (status, code) with which everything is answered.
        gate: (status, code) with which files are answered, while anybody may see their names.
        silence: Seconds until anything is answered.
        asked: (method, path) of all requests.
    """

    def __init__(self):
        self.repositories, self.asked = {}, []
        self.moving, self.refusal, self.gate, self.silence = False, None, None, 0
        self._moves, self._lock = {}, threading.Lock()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                time.sleep(hub.silence)
                status, headers, body = hub.answer(self.command, self.path.split("?")[0])
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - a name of the standard library

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, repository, *commits):
        """Adds commits to a repository, and returns their hashes."""
        there = self.repositories.setdefault(repository, {})
        hashes = [f"{len(there) + place:040x}" for place in range(1, len(commits) + 1)]
        there.update(zip(hashes, commits, strict=True))
        return hashes

    def resolutions(self):
        """Returns how often somebody asked what `main` is."""
        return sum("/main" in path for _, path in self.asked)

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method, path):
        """Returns status, headers and body."""
        self.asked.append((method, path))
        parts = [unquote(part) for part in path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repository, what, revision = "/".join(parts[:2]), *(*parts[2:4], "revision", "main")[:2]
        if self.refusal or (self.gate and not api):
            status, code = self.refusal or self.gate
            return status, {"X-Error-Code": code} if code else {}, b"{}"
        if repository not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        commit = self._commit(repository, revision)
        files = self.repositories[repository].get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        of = {"X-Repo-Commit": commit}
        if api:
            entries = [{"type": "file", "path": name, "size": 1, "oid": commit} for name in files]
            told = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(entries if what == "tree" else told).encode()
        name = "/".join(parts[4:])
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound", **of}, b""
        return 200, {"ETag": f'"{hash(files[name]) & 0xFFFFFFFF:08x}"', "Accept-Ranges": "bytes", **of}, files[name]

    def _commit(self, repository, revision):
        if revision != "main":
            return revision
        commits = list(self.repositories[repository])
        with self._lock:
            moves = self._moves[repository] = self._moves.get(repository, -1) + 1
        return commits[moves % len(commits)] if self.moving else commits[-1]


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """A `LocalHub` that the client in this process asks, with an empty cache."""
    from huggingface_hub import constants, file_download, utils

    hub = LocalHub()
    files = "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, *files)
    monkeypatch.setattr(file_download, *files, raising=False)  # early versions have a copy
    settings = {
        "ENDPOINT": hub.endpoint,
        "HF_HUB_CACHE": str(tmp_path / "hub_cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    forget = getattr(utils, "reset_sessions", None) or utils.close_session
    forget()  # sessions keep whether they are offline
    yield hub
    forget()
    hub.close()


class Killed(BaseException):
    """What a killed process does not get to see: nothing is done to files any more."""


@pytest.fixture
def interfere(monkeypatch):
    """Stops what this thread does to files at the n-th thing, and tells whether it came so far.

    `error` fails that one alone; without it that one and all later ones do not happen, as after a kill.
    """

    @contextlib.contextmanager
    def interfere(at, error=None):
        thread, count = threading.get_ident(), 0
        stopped = []

        def counted(name, function):
            def call(*arguments, **keywords):
                nonlocal count
                if threading.get_ident() == thread:
                    count += 1
                    if count == at or (count > at and error is None):
                        stopped.append(name)
                        raise error or Killed
                return None if name == "fsync" else function(*arguments, **keywords)

            return call

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for name in ("open", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync"):
                patch.setattr(os, name, counted(name, getattr(os, name)))
            patch.setattr(io, "open", counted("open", io.open))
            yield stopped

    return interfere


@pytest.fixture(scope="session")
def store_turned():
    """Returns a function that encodes a picture as a camera held another way does: its EXIF says how to turn it."""
    ways = Image.Transpose
    back = [
        *(None, ways.FLIP_LEFT_RIGHT, ways.ROTATE_180, ways.FLIP_TOP_BOTTOM),
        *(ways.TRANSPOSE, ways.ROTATE_90, ways.TRANSVERSE, ways.ROTATE_270),
    ]

    def store(picture, orientation=6, form="png", **options):
        way, exif, file = back[orientation - 1], Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        stored = picture if way is None else picture.transpose(way)
        stored.save(file, form, exif=exif, **options)
        return file.getvalue()

    return store


@pytest.fixture(scope="session")
def photograph():
    """A picture that looks another way whichever way it is turned."""
    steps = np.linspace(0, 255, 48)
    channels = [steps[:, None] + 0 * steps, steps[None] / 2 + steps[:, None] / 4, 255 - np.outer(steps, steps) / 255]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)[:, :36])

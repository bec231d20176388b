"""Hub ids through the real client, against a stand-in server on this machine."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from altclip_jax.assets import default_checkpoint
from altclip_jax.files import hub

COMMIT = "0" * 40


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks: one repository, one gated, everything else missing."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.models("/".join(parts[2:4]), parts[4:])
        elif len(parts) >= 5 and "/".join(parts[:2]) == "some/model" and parts[2] == "resolve":
            self.file(parts[-1], body)
        else:
            self.refuse("RepoNotFound")

    def models(self, repository, rest):
        if repository == "gated/model":
            self.refuse("GatedRepo", 403)
        elif repository != "some/model":
            self.refuse("RepoNotFound")
        elif rest[1:] and rest[1] not in ("main", COMMIT):
            self.refuse("RevisionNotFound")
        elif rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": name, "size": 1, "oid": COMMIT} for name in self.names()]
            self.send(json.dumps(entries).encode(), {"Content-Type": "application/json"}, body=True)
        else:
            content = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.names()]}
            self.send(json.dumps(content).encode(), {"Content-Type": "application/json"}, body=True)

    @staticmethod
    def names():
        return [*(path.name for path in default_checkpoint().iterdir()), "pytorch_model.bin", "tf_model.h5"]

    def file(self, name, body):
        assert name not in ("pytorch_model.bin", "tf_model.h5"), "a file that is not needed was asked for"
        data = (default_checkpoint() / name).read_bytes()
        self.send(data, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, body=body)

    def refuse(self, code, status=404):
        self.send(b"{}", {"X-Error-Code": code}, body=True, status=status)

    def send(self, data, headers, *, body, status=200):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(data)


@pytest.fixture(scope="module")
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def altclip(endpoint, cache, *arguments, offline=False):
    """Runs the command in a process of its own, since the client reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline))}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": ""}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-m", "altclip_jax", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_a_repository_is_downloaded_once_and_then_works_offline(endpoint, tmp_path):
    done = altclip(endpoint, tmp_path, "info", "some/model", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["total"] == 3_505_921
    assert json.loads(done.stdout)["files"][0]["name"] == "model.safetensors"
    for how in ({"offline": True}, {}):
        extra = [] if how else ["--local-files-only"]
        again = altclip("http://127.0.0.1:9", tmp_path, "info", "some/model", "--json", *extra, **how)
        assert again.returncode == 0, again.stderr
        assert again.stdout == done.stdout


def test_converting_a_repository_brings_its_processor_along(endpoint, tmp_path):
    done = altclip(endpoint, tmp_path / "cache", "convert", "some/model", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "new" / name).read_bytes() == (default_checkpoint() / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no/model",), "no public repository of that name"),
        (("gated/model",), "asks for permission"),
        (("some/model", "--revision", "v9"), "no revision 'v9'"),
        (("some/model", "--local-files-only"), "has not been downloaded before"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(endpoint, tmp_path, arguments, words):
    done = altclip(endpoint, tmp_path, "info", *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "pass the path of a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_network_and_offline_mode_are_sentences(tmp_path):
    for offline in (False, True):
        done = altclip("http://127.0.0.1:9", tmp_path, "info", "some/model", offline=offline)
        assert done.returncode == 1
        assert "pass the path of a folder" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("source", ["./nothing", "/no/such/folder", "a/b/c", "with space/model"])
def test_what_looks_like_a_path_never_reaches_the_network(source):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        hub.fetch_files(source, ["config.json"])


def test_a_folder_is_itself_and_a_file_is_not(tmp_path):
    assert hub.fetch_files(tmp_path, ["config.json"]) == tmp_path
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(FileNotFoundError, match="is a file"):
        hub.fetch_files(file, ["config.json"])

"""Hub ids through the real client, against a stand-in server on this machine."""

import json
import logging
import os
import subprocess
import sys
from functools import partial

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import constants

from altclip_jax import AltCLIP, AltCLIPConfig, AltCLIPModel, AltCLIPProcessor, checkpoints, cli, parallel, student
from altclip_jax.assets import default_checkpoint
from altclip_jax.files import hub
from altclip_jax.processing.processor import IMAGE_PROCESSOR, TOKENIZER
from altclip_jax.training import processes
from altclip_jax.training.config import RunConfig
from altclip_jax.training.run_folder import begin
from altclip_jax.weights.folder import CONFIG, WEIGHTS

FILES = {path.name: path.read_bytes() for path in default_checkpoint().iterdir()}
NOWHERE = "http://127.0.0.1:9"


def marked(commit):
    """The embedded model, whose files say in which commit they were: JSON by a key, the weights by the temperature."""
    files = dict(FILES)
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        files[name] = json.dumps({**json.loads(files[name]), "commit": commit}).encode()
    weights = bytearray(files["model.safetensors"])
    data = 8 + int.from_bytes(weights[:8], "little")
    place = data + json.loads(weights[8:data])["logit_scale"]["data_offsets"][0]
    weights[place : place + 2] = bytes([0x90 + commit, 0x40])  # 4.5 and a 32nd for each, in bfloat16
    files["model.safetensors"] = bytes(weights)
    return files


def commit_of_weights(params):
    return round((float(params["logit_scale"]) - 4.5) * 32)


def commit_of_files(folder):
    """Returns which commit all marked files in a folder are of."""
    commits = {json.loads(path.read_text())["commit"] for path in folder.glob("*config.json")}
    assert len(commits) == 1, commits
    return commits.pop()


@pytest.fixture
def some_model(local_hub):
    """A hub with a repository some/model of two commits, and weights that nobody shall ask for."""
    others = {"tf_model.h5": b"", "pytorch_model.bin": b""}
    local_hub.add("some/model", *({**marked(commit), **others} for commit in (1, 2)))
    yield local_hub
    assert not [path for _, path in local_hub.asked if path.endswith((".h5", ".bin"))]


def altclip(endpoint, cache, *arguments, offline=False):
    """Runs the command in a process of its own, since the client reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline))}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": ""}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-m", "altclip_jax", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_one_object_is_of_one_commit_though_the_branch_moves(some_model, tmp_path):
    """Each of these asked twice or more what the branch is, and took files of two commits."""
    some_model.moving = True

    def resolved_once(make):
        before = some_model.resolutions()
        made = make()
        assert some_model.resolutions() == before + 1
        return made

    clip = resolved_once(partial(AltCLIP.from_pretrained, "some/model"))
    assert commit_of_weights(clip.params) == clip.model.config.extra["commit"] == 1
    assert clip.processor.image_processor.extra["commit"] == 1
    model, params = resolved_once(partial(AltCLIPModel.from_pretrained, "some/model"))
    assert commit_of_weights(params) == model.config.extra["commit"] == 2
    processor = resolved_once(partial(AltCLIPProcessor.from_pretrained, "some/model"))
    assert processor.image_processor.extra["commit"] == 1
    description = resolved_once(partial(checkpoints.describe, "some/model"))
    assert description.config["commit"] == 2
    resolved_once(partial(checkpoints.convert, "some/model", tmp_path / "converted"))
    assert commit_of_files(tmp_path / "converted") == 1
    assert commit_of_weights(AltCLIPModel.from_pretrained(tmp_path / "converted")[1]) == 1


def test_a_student_is_made_of_one_commit_of_each_source(some_model, tmp_path):
    some_model.moving = True
    AltCLIPConfig().save(tmp_path)
    with pytest.raises(ValueError, match="image processor makes pictures of 32"):
        student.start(tmp_path / "new", config=tmp_path, tokenizer="some/model", image_processor="some/model")
    assert some_model.resolutions() == 1


def test_a_run_begins_from_one_commit(some_model, tmp_path):
    some_model.moving = True
    values = {"stage": "contrastive", "folder": str(tmp_path), "model": {"source": "some/model"}}
    config = RunConfig.from_values({**values, "data": {"train": [{"path": "nothing.jsonl"}]}})
    trained = begin(config, tmp_path, {}, parallel.make_mesh(devices=jax.devices()[:1]))
    assert some_model.resolutions() == 1
    assert commit_of_weights(trained) == commit_of_files(tmp_path / "model") == 1


def test_processes_of_a_run_take_the_commit_that_the_first_has_found(some_model, monkeypatch):
    first = np.frombuffer(list(some_model.repositories["some/model"])[1].encode(), np.uint8)
    some_model.moving = True
    monkeypatch.setattr(processes, "from_first", lambda own: first)
    folder = processes.find("some/model").fetch(CONFIG, IMAGE_PROCESSOR, TOKENIZER)
    assert commit_of_files(folder) == 2


@pytest.mark.parametrize("trouble", ["nobody listens", "no such host", "a server in trouble", "too many", "silence"])
def test_what_was_downloaded_is_used_where_the_hub_does_not_answer(some_model, monkeypatch, caplog, trouble):
    clip = AltCLIP.from_pretrained("some/model")
    assert commit_of_weights(clip.params) == 2
    some_model.add("some/model", marked(3))
    if trouble in ("nobody listens", "no such host"):
        monkeypatch.setattr(constants, "ENDPOINT", NOWHERE if trouble == "nobody listens" else "http://no.such.invalid")
    elif trouble == "silence":
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.01)
        some_model.silence = 0.2
    else:
        some_model.refusal = (503, None) if trouble == "a server in trouble" else (429, None)
    with caplog.at_level(logging.INFO):
        again = AltCLIP.from_pretrained("some/model")
    assert commit_of_weights(again.params) == again.model.config.extra["commit"] == 2
    assert again.processor.image_processor.extra["commit"] == 2
    told = [record.getMessage() for record in caplog.records if record.name == hub.__name__]
    assert len(told) == 1
    assert "'some/model' is taken as it was downloaded before, commit " + "0" * 39 + "2" in told[0]


@pytest.mark.parametrize("where", ["refusal", "gate"])
@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (401, "GatedRepo", PermissionError, "asks for permission"),
        (403, "GatedRepo", PermissionError, "asks for permission"),
        (401, None, PermissionError, r"refuses 'some/model' to you \(401\)"),
        (403, None, PermissionError, r"refuses 'some/model' to you \(403\)"),
        (404, "RepoNotFound", FileNotFoundError, "no public repository of that name"),
        (404, "RevisionNotFound", FileNotFoundError, "has no revision 'main'"),
    ],
)
def test_what_the_hub_refuses_is_not_taken_from_what_was_downloaded(some_model, where, status, code, kind, words):
    AltCLIPProcessor.from_pretrained("some/model")
    setattr(some_model, where, (status, code))
    with pytest.raises(kind, match=words):
        AltCLIPProcessor.from_pretrained("some/model")


def test_a_revision_that_was_deleted_is_not_taken_from_what_was_downloaded(some_model):
    commit = next(iter(some_model.repositories["some/model"]))
    hub.fetch("some/model", CONFIG, revision=commit)
    del some_model.repositories["some/model"][commit]
    with pytest.raises(FileNotFoundError, match=f"has no revision '{commit}'"):
        hub.fetch("some/model", CONFIG, revision=commit)


def test_of_a_part_that_was_not_downloaded_the_sentence_says_which(some_model, monkeypatch):
    AltCLIPModel.from_pretrained("some/model")
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    AltCLIPModel.from_pretrained("some/model")
    with pytest.raises(FileNotFoundError, match="downloaded before, but not its image processor"):
        AltCLIP.from_pretrained("some/model")
    with pytest.raises(FileNotFoundError, match="downloaded before, but not its image processor"):
        checkpoints.convert("some/model", "nowhere", local_files_only=True)
    with pytest.raises(FileNotFoundError, match="'v9' has not been downloaded before"):
        AltCLIPModel.from_pretrained("some/model", revision="v9")


def test_what_a_repository_lacks_is_no_hindrance_without_a_network(local_hub, monkeypatch):
    names = "config.json", "model.safetensors"
    local_hub.add("bare/model", {name: FILES[name] for name in names})
    for endpoint in (local_hub.endpoint, NOWHERE):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        folder = hub.fetch("bare/model", CONFIG, WEIGHTS, IMAGE_PROCESSOR, TOKENIZER)
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_cache_that_the_client_alone_has_filled_serves_without_a_network(some_model, monkeypatch):
    """As transformers fills it: file by file, the branch's name first, and nothing of what it never asked for."""
    for name in FILES:
        huggingface_hub.hf_hub_download("some/model", name)
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    assert commit_of_weights(AltCLIP.from_pretrained("some/model").params) == 2
    assert commit_of_files(hub.fetch("some/model", CONFIG, WEIGHTS, local_files_only=True)) == 2


def test_a_damaged_or_read_only_cache(some_model, tmp_path):
    folder = hub.fetch("some/model", CONFIG)
    reference = folder.parent.parent / "refs" / "main"
    assert reference.read_text() == folder.name
    reference.write_text("../../elsewhere")
    with pytest.raises(FileNotFoundError, match="has not been downloaded before"):
        hub.fetch("some/model", CONFIG, local_files_only=True)
    reference.unlink()
    reference.parent.rmdir()
    reference.parent.write_text("a file where the folder of the references was")
    assert hub.fetch("some/model", CONFIG) == folder


def test_a_download_that_breaks_off_leaves_the_branch_where_it_was(some_model):
    hub.fetch("some/model", CONFIG)
    some_model.add("some/model", marked(3))
    some_model.gate = (410, None)
    with pytest.raises(ConnectionError, match=r"Downloading 'some/model' from the hub failed .* 410"):
        hub.fetch("some/model", CONFIG)
    assert commit_of_files(hub.fetch("some/model", CONFIG, local_files_only=True)) == 2


def test_a_repository_is_downloaded_once_and_then_works_offline(some_model, tmp_path):
    done = altclip(some_model.endpoint, tmp_path, "info", "some/model", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["total"] == 3_505_921
    assert json.loads(done.stdout)["files"][0]["name"] == "model.safetensors"
    for offline in (True, False):
        again = altclip(NOWHERE, tmp_path, "info", "some/model", "--json", offline=offline)
        assert again.returncode == 0, again.stderr
        assert again.stdout == done.stdout
        assert not again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no/model",), "no public repository of that name"),
        (("some/model", "--revision", "v9"), "no revision 'v9'"),
        (("some/model", "--local-files-only"), "has not been downloaded before"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(some_model, capsys, arguments, words):
    assert cli.main(["info", *arguments]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert "pass the path of a folder" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("offline", [False, True])
def test_no_network_and_offline_mode_are_sentences(local_hub, monkeypatch, offline):
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(FileNotFoundError, match=r"has not been downloaded before.*pass the path of a folder"):
        hub.find("some/model")


@pytest.mark.parametrize("source", ["./nothing", "/no/such/folder", "a/b/c", "with space/model"])
def test_what_looks_like_a_path_never_reaches_the_network(source):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        hub.find(source)


def test_a_folder_is_itself_and_a_file_is_not(tmp_path):
    assert hub.fetch(tmp_path, CONFIG) == tmp_path
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(FileNotFoundError, match="is a file"):
        hub.fetch(file, CONFIG)

"""What a run tells, and what of it stays when the run is interrupted."""

import json
import math
import re
import sys
from types import SimpleNamespace

import pytest

from altclip_jax.training.log import RunLog


@pytest.fixture
def entries(tmp_path):
    def read():
        # a strict reader: NaN and Infinity are no JSON, though Python reads them
        def refuse(name):
            raise ValueError(f"{name} is no JSON")

        lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line, parse_constant=refuse) for line in lines]

    return read


def told(folder, first_step, until):
    with RunLog(folder, first_step=first_step, steps=9, quiet=True) as log:
        for step in range(first_step + 1, until + 1):
            log.train(step, {"loss": float(step), "from": first_step}, left=1.0)
            if step % 2 == 0:
                log.evaluation(step, {"mean_recall": step / 10})


def test_a_run_that_goes_on_tells_each_step_once(tmp_path, entries):
    told(tmp_path, 0, 6)
    told(tmp_path, 4, 8)
    assert [(entry["step"], entry["from"]) for entry in entries() if "loss" in entry] == [
        *((step, 0) for step in (1, 2, 3, 4)),
        *((step, 4) for step in (5, 6, 7, 8)),
    ]
    assert [entry["step"] for entry in entries() if "evaluation" in entry] == [2, 4, 6, 8]


def test_a_run_that_begins_anew_forgets_what_was_told(tmp_path, entries):
    told(tmp_path, 0, 3)
    told(tmp_path, 0, 1)
    assert [entry["step"] for entry in entries()] == [1]


@pytest.mark.parametrize(
    "half", [b'{"step": 3, "loss"', b'{"step": 3, "loss": 1.0}', b'{"step": 3, "a": "\xe7\x8c', b"\0\0"]
)
def test_a_line_that_was_half_written_is_dropped(tmp_path, entries, half):
    told(tmp_path, 0, 3)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(half)
    told(tmp_path, 3, 4)
    assert [entry["step"] for entry in entries() if "loss" in entry] == [1, 2, 3, 4]


def test_what_is_no_number_becomes_null(tmp_path, entries):
    with RunLog(tmp_path, first_step=0, steps=9, quiet=True) as log:
        log.train(1, {"loss": math.nan, "scale": math.inf, "learning_rate": 0.5}, left=math.inf)
        log.evaluation(1, {"loss": math.nan, "mean_recall": 0.25})
    assert entries() == [
        {"step": 1, "loss": None, "scale": None, "learning_rate": 0.5},
        {"step": 1, "evaluation": {"loss": None, "mean_recall": 0.25}},
    ]


def test_each_line_is_on_disk_when_it_is_told(tmp_path, entries):
    with RunLog(tmp_path, first_step=0, steps=9, quiet=True) as log:
        log.train(1, {"loss": 1.0}, left=1.0)
        assert [entry["step"] for entry in entries()] == [1]


def test_people_read_one_line_a_step_and_what_is_said(tmp_path, capsys):
    with RunLog(tmp_path, first_step=0, steps=9) as log:
        log.train(1, {"loss": 2.34567, "learning_rate": 1e-5}, left=math.inf)
        log.train(2, {"loss": 2.0, "samples_per_second": 1234.5, "waiting": 0.25}, left=3725.2)
        log.say("[bold] is no markup")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 1/9  loss 2.346  learning_rate 1e-05  left ?",
        "step 2/9  loss 2  samples_per_second 1234  waiting 0.25  left 1:02:05",
        "[bold] is no markup",
    ]


def test_a_quiet_run_prints_nothing(tmp_path, capsys):
    told(tmp_path, 0, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_fits_eighty_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with RunLog(tmp_path, first_step=0, steps=238_620) as log:
        metrics = {"loss": 2.34567, "learning_rate": 1.2345e-5, "samples_per_second": 1234.56, "waiting": 0.25}
        log.train(123_456, metrics, left=1.0)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err).splitlines()[-1]
    assert last.startswith("123456/238620 ")
    assert " loss 2.346  lr 1.23e-05  1235 samples/s " in last
    assert len(last) <= 80


def test_tensorboard_does_not_show_what_an_interrupted_run_told_last(tmp_path, monkeypatch):
    opened, shown = [], []
    writer = SimpleNamespace(add_scalar=lambda *scalar: shown.append(scalar), close=lambda: None)
    board = SimpleNamespace(SummaryWriter=lambda folder, purge_step: opened.append((folder, purge_step)) or writer)
    monkeypatch.setitem(sys.modules, "tensorboardX", board)
    with RunLog(tmp_path, first_step=4, steps=9, tensorboard=True, quiet=True) as log:
        log.train(5, {"loss": 0.5}, left=1.0)
        log.evaluation(5, {"mean_recall": 0.25})
    assert opened == [(str(tmp_path / "tensorboard"), 5)]
    assert shown == [("train/loss", 0.5, 5), ("evaluation/mean_recall", 0.25, 5)]


def test_a_log_that_cannot_be_written_is_a_sentence_with_its_name(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        RunLog(tmp_path, first_step=0, steps=9, quiet=True)

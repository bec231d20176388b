"""The file of a run: what it means, and what is said when it makes no sense."""

import json
import textwrap

import pytest

from altclip_jax.training.config import RunConfig
from altclip_jax.training.description import config_of, describe, differences

CONTRASTIVE = """
    stage = "contrastive"
    folder = "runs/one"
    [model]
    source = "BAAI/AltCLIP"
    [[data.train]]
    path = "pairs.jsonl"
"""


def written(tmp_path, text=CONTRASTIVE):
    file = tmp_path / "run.toml"
    file.write_text(textwrap.dedent(text))
    return file


def test_defaults_of_both_stages_are_those_of_the_paper(tmp_path):
    contrastive = RunConfig.read(written(tmp_path))
    assert (contrastive.steps, contrastive.batch_size) == (2000, 1024)
    optimizer = contrastive.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.warmup_steps, optimizer.clip_norm) == (
        2e-6,
        0.05,
        2000,
        5.0,
    )
    assert (optimizer.name, optimizer.betas, optimizer.eps) == ("adamw", (0.99, 0.999), 1e-8)
    assert contrastive.model.train == ("text_model", "text_projection", "logit_scale")

    teacher = RunConfig.read(written(tmp_path), ["stage=teacher", "teacher.source=openai/clip-vit-large-patch14"])
    assert (teacher.steps, teacher.batch_size) == (238_620, 1024)
    optimizer = teacher.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.warmup_steps, optimizer.clip_norm) == (
        1e-4,
        0.1,
        500,
        1.0,
    )
    assert teacher.model.train == ("text_model",)


def test_paths_are_relative_to_the_file_and_hub_ids_are_left_alone(tmp_path):
    (tmp_path / "student").mkdir()
    config = RunConfig.read(written(tmp_path, CONTRASTIVE.replace("BAAI/AltCLIP", "student")))
    assert config.model.source == str(tmp_path / "student")
    assert config.data.train[0].path == str(tmp_path / "pairs.jsonl")
    assert config.folder == "runs/one"
    assert RunConfig.read(written(tmp_path)).model.source == "BAAI/AltCLIP"


def test_overrides_are_toml_values_or_plain_strings(tmp_path):
    overrides = [
        "optimizer.learning_rate=1e-3",
        "folder=elsewhere",
        "data.train.0.weight=2",
        'model.train=["text_model"]',
    ]
    config = RunConfig.read(written(tmp_path), overrides)
    assert config.optimizer.learning_rate == 1e-3
    assert config.folder == "elsewhere"
    assert config.data.train[0].weight == 2
    assert config.model.train == ("text_model",)


def test_all_faults_are_named_at_once(tmp_path):
    overrides = ["steps=0", "optimizer.learning_rat=1", "model.dtype=float8", "data.max_bad_share=1.5"]
    with pytest.raises(ValueError, match="is not the configuration of a run") as caught:
        RunConfig.read(written(tmp_path), overrides)
    for place in ("steps: ", "optimizer.learning_rat: ", "model.dtype: ", "data.max_bad_share: "):
        assert place in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage=teacher", r"needs a \[teacher\]"),
        ("loss.micro_batches=3", "must divide batch_size=1024"),
        ("optimizer.warmup_steps=3000", "exceeds steps=2000"),
        ("optimizer.rules=[{match='('}]", "not a regular expression"),
        ("nothing", "not of the form key=value"),
        ("stage.x=1", "there is no place stage.x"),
        ("data.train.5.weight=2", "there is no place data.train.5.weight"),
        ("loss={form='chunked', chunk_rows=100}", "must divide the 1024 rows"),
        ("model.dtype=float16", "float32' or 'bfloat16'"),
        ("checkpoints.keep_best=1", r"keep_best needs data\.evaluate"),
        ("checkpoints={keep_best=1, metric='recall'}", "'recall' is not evaluated in this stage"),
        ("logging.profile_steps=[0, 3]", "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.read(written(tmp_path), [override])


def test_settings_that_the_stage_does_not_read_are_refused(tmp_path):
    teacher = ["stage=teacher", "teacher.source=clip", "model.train=['text_model']"]
    assert RunConfig.read(written(tmp_path), teacher).loss.form == "plain"
    for override, message in [
        ("loss.form=chunked", "loss.form are of the contrastive loss"),
        ("data.languages={zh=2}", "data.languages weighs captions of pictures"),
        ("checkpoints={keep_best=1, metric='text_to_image@1'}", "not evaluated in this stage: there are"),
    ]:
        with pytest.raises(ValueError, match=message):
            RunConfig.read(written(tmp_path), [*teacher, override])


def test_an_optimizer_has_its_own_defaults_where_the_papers_table_is_of_another(tmp_path):
    of = {
        name: RunConfig.read(written(tmp_path), [f"optimizer.name={name}"]).optimizer
        for name in ("adamw", "sgd", "lion")
    }
    assert (of["adamw"].weight_decay, of["adamw"].betas) == (0.05, (0.99, 0.999))
    assert (of["sgd"].weight_decay, of["sgd"].betas[0]) == (0.0, 0.9)
    assert of["lion"].betas == (0.9, 0.99)
    given = RunConfig.read(written(tmp_path), ["optimizer.name=sgd", "optimizer.weight_decay=0.3"])
    assert given.optimizer.weight_decay == 0.3


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no .*absent\.toml"):
        RunConfig.read(tmp_path / "absent.toml")
    with pytest.raises(ValueError, match=r"run\.toml is not valid TOML"):
        RunConfig.read(written(tmp_path, "stage = ["))


def test_settings_survive_json_and_differences_name_what_decides_the_numbers(tmp_path):
    config = RunConfig.read(written(tmp_path))
    stored = json.loads(json.dumps(describe(config, [])))
    assert config_of(stored, "it") == config
    assert differences(describe(config, []), stored) == []
    changed = RunConfig.read(
        written(tmp_path), ["seed=1", "optimizer.betas=[0.9,0.98]", "data.threads=9", "mesh.fsdp=2", "logging.every=1"]
    )
    assert differences(describe(changed, []), stored) == [
        "optimizer.betas: [0.99, 0.999] -> [0.9, 0.98]",
        "seed: 0 -> 1",
    ]


def test_a_setting_is_said_where_it_is_given_and_not_where_it_is_a_default(tmp_path):
    config = RunConfig.read(written(tmp_path), ["data.orientation=exif"])
    assert config.says("data.orientation")
    assert not RunConfig.read(written(tmp_path)).says("data.orientation")
    assert not config.says("loss.form")
    assert not config.says("teacher.target")

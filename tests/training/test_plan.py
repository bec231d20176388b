"""A plan against the run that it speaks of."""

import json

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIPImageProcessor, cli
from altclip_jax.planning import plan as planning
from altclip_jax.planning.chips import CHIPS, read
from altclip_jax.planning.plan import abstract_step, plan
from altclip_jax.training import stages
from altclip_jax.training.description import files_of
from altclip_jax.training.run import build

MESH = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
RUNS = {
    "stored features": {},
    "pictures": {
        "data__store_image_features": False,
        "model__frozen": ["text_model/token_embedding/.*"],
        "optimizer__ema_decay": 0.9,
    },
    "stored teacher": {"stage": "teacher"},
    "projected teacher": {"stage": "teacher", "teacher__store": False, "teacher__target": "projected"},
}


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name, leaf.sharding), tree)


@pytest.mark.parametrize("name", RUNS)
def test_the_step_that_is_planned_is_the_one_that_is_run(settings, tmp_path, monkeypatch, name):
    config, parts = settings(**MESH, **RUNS[name]), []
    for stage in ("contrastive", "teacher_learning"):
        made = getattr(stages, stage)
        monkeypatch.setattr(stages, stage, lambda builder, made=made: parts.append(made(builder)) or parts[-1])
    run = build(config, tmp_path, files_of(config.data.train), resumed=False)
    with run.batches(0) as batches:
        arrays = next(batches).placed
    inputs = jax.eval_shape(run.normalize, arrays)  # pictures are bytes until then
    step = abstract_step(config, run.mesh)
    assert described(step.state) == described(run.abstract)
    assert described(step.locked) == described(parts[0].locked)
    assert described(step.helper) == described(parts[0].helper)
    assert step.objective == parts[0].objective
    rows = {name: (values.shape, values.dtype.name) for name, values in inputs.items()}
    assert {name: described(leaf)[:2] for name, leaf in step.batch.items()} == rows
    assert step.model_flops() == run.flops(arrays)


def test_pictures_are_bytes_until_the_step_and_then_the_numbers_of_the_processor(settings, workshop, tmp_path):
    config = settings(**MESH, data__store_image_features=False, data__augmentation={"shift": 0.1})
    run = build(config, tmp_path, files_of(config.data.train), resumed=False)
    with run.batches(0) as batches:
        arrays = next(batches).placed
    assert {"input_ids", "attention_mask", "pictures"} == arrays.keys()
    assert (arrays["pictures"].dtype, arrays["pictures"].shape) == (np.uint8, (16, 32, 32, 3))
    processor = AltCLIPImageProcessor.from_pretrained(workshop / "student")
    found = run.normalize(arrays)
    np.testing.assert_array_equal(found["pixel_values"], processor.normalize(np.asarray(arrays["pictures"])))
    assert found["pixel_values"].sharding == arrays["pictures"].sharding


@pytest.fixture
def small(settings, workshop, tmp_path):
    """Returns a function (**changes) -> the configuration of a run whose model has one layer and no weights."""
    values = json.loads((workshop / "student/config.json").read_text())
    for tower in ("text_config", "vision_config"):
        values[tower]["num_hidden_layers"] = 1
    (tmp_path / "small.json").write_text(json.dumps(values))
    return lambda **changes: settings(model__source=str(tmp_path / "small.json"), **changes)


def test_arguments_are_the_sum_of_their_shards_and_loops_are_counted(small):
    mesh = planning.parallel.make_mesh(data=2, fsdp=2, tensor=2)
    config = small(loss__micro_batches=4, **MESH)
    made = plan(config, mesh, compiler="cpu")
    assert made.compiled_arguments == sum(made.arguments.values())
    assert made.arguments["batch"] == 16 * (12 * 4 + 12 * 4 + 16 * 4) // 4
    table = 8000 * 16 * 4  # most of this model, cut along fsdp alone
    assert table // 2 < made.arguments["parameters"] < table // 2 * 1.1
    assert made.arguments["optimizer state"] == pytest.approx(2 * made.arguments["parameters"], rel=0.01)
    assert made.peak >= sum(made.arguments.values()) + made.temporaries
    # the forward pass of every part once more is what is added, and that is less than half of all
    assert made.model_flops < made.program_flops < 1.5 * made.model_flops
    assert made.unknown_loops == 0


def test_parts_of_a_batch_send_the_gradient_over_devices_once(small):
    mesh, sent = planning.parallel.make_mesh(data=8), []
    for parts in (1, 2):
        made = plan(small(loss__micro_batches=parts), mesh, compiler="cpu")
        sent.append(sum(one.sent for one in made.exchanges if one.kind == "all-reduce"))
    assert sent[0] * 0.9 < sent[1] < sent[0] * 1.1


def test_no_weights_are_needed_and_a_missing_config_is_told(settings, workshop, tmp_path):
    for name in ("student", "clip"):
        (tmp_path / f"{name}.json").write_bytes((workshop / name / "config.json").read_bytes())
    config = settings(
        "teacher", model__source=str(tmp_path / "student.json"), teacher__source=str(tmp_path / "clip.json"), **MESH
    )
    mesh = planning.parallel.make_mesh(data=2, fsdp=2, tensor=2)
    assert described(abstract_step(config, mesh).state) == described(abstract_step(settings("teacher"), mesh).state)
    with pytest.raises(FileNotFoundError, match=r"no folder \./absent.* may also be a config.json"):
        abstract_step(settings(model__source="./absent"), mesh)


def toml(config, path):
    values = config.to_dict()
    lines = [f"{name} = {json.dumps(values[name])}" for name in ("stage", "folder", "steps", "batch_size")]
    for table in ("model", "data", "optimizer", "teacher"):
        if values[table] is not None:
            lines.append(f"[{table}]")
            lines += [
                f"{name} = {json.dumps(value)}"
                for name, value in values[table].items()
                if value is not None and "{" not in json.dumps(value)
            ]
    for source in values["data"]["train"]:
        lines += ["[[data.train]]", f"path = {json.dumps(source['path'])}"]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_the_command_prints_json_from_a_process_of_its_own(small, tmp_path, capsys):
    file = toml(small(), tmp_path / "run.toml")
    code = cli.main(["plan", file, "--mesh", "fsdp=2,tensor=2", "--devices", "12", "batch_size=12", "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    found = json.loads(out)
    assert found["mesh"] == {"data": 3, "fsdp": 2, "tensor": 2}
    assert (found["compiler"], found["batch_size"], found["chip"]["name"]) == ("cpu", 12, "v5e")
    assert {"all-gather", "all-reduce"} <= {exchange["kind"] for exchange in found["exchanges"]}
    assert found["reading"]["sentence"].startswith("Bound by")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--mesh", "data=2,model=4"], "--mesh data=2,model=4 is no mesh: expected sizes of data, fsdp, tensor"),
        (["--mesh", "data=two"], "is no mesh"),
        (["--mesh", "fsdp=0"], "mesh.fsdp: Input should be greater than 0"),
        (["--mesh", "fsdp=2"], "For how many devices?"),
        (["--mesh", "data=3", "--devices", "8"], "needs 3 devices and there are 8"),
        (["--topology", "v5e:4x4"], "'v5e:4x4'"),
    ],
)
def test_a_bad_mesh_gets_a_sentence(settings, tmp_path, capsys, options, sentence):
    assert cli.main(["plan", toml(settings(), tmp_path / "run.toml"), *options]) == 1
    _, err = capsys.readouterr()
    assert sentence in err
    assert len(err.strip().splitlines()) <= 2


def test_a_batch_that_cannot_be_dealt_is_refused(settings):
    with pytest.raises(ValueError, match=r"16 rows cannot be dealt evenly over data x fsdp = 3"):
        abstract_step(settings(), planning.parallel.make_mesh(data=3, devices=jax.devices()[:3]))


def made(**changes):
    values = {
        "compiler": "cpu",
        "mesh": {"data": 8, "fsdp": 1, "tensor": 1},
        "batch_size": 64,
        "arguments": {"parameters": 10 * 2**30, "batch": 0, "teacher": 0},
        "compiled_arguments": 10 * 2**30,
        "results": 0,
        "temporaries": 2**30,
        "peak": 11 * 2**30,
        "program_flops": 197e12,
        "model_flops": 1.0,
        "exchanges": (planning.Exchange("all-reduce", ("data",), 2, 5, 20e9),),
        "unknown_loops": 0,
        "seconds": 1.0,
    }
    return planning.Plan(**{**values, **changes})


def test_the_reading_names_what_dominates():
    chip = CHIPS["v5e"]
    assert read(made(), chip)[:3] == (1.0, 10 * 2**30 / 0.819e12, {"all-reduce data": 0.2})
    assert read(made(), chip).sentence.startswith("Compute-bound: matrix products 1e+03 ms, against exchange 200 ms")
    assert read(made(program_flops=1e9), chip).sentence.startswith("Bound by exchange: exchange 200 ms (most of it")
    assert read(made(program_flops=1e9, exchanges=()), chip).sentence.startswith("Bound by memory traffic: ")
    full = read(made(peak=20 * 2**30), chip)
    assert not full.fits
    assert "20.0 GiB at the peak, and v5e has 15.75 GiB. Most of it is parameters, 10.0 GiB" in full.sentence
    assert np.isclose(sum(full.exchange.values()), 0.2)


def test_the_command_prints_for_people(settings, tmp_path, capsys, monkeypatch):
    exchanges = (planning.Exchange("all-gather", ("fsdp",), 4, 3 * 2**20, 12 * 2**20),)
    monkeypatch.setattr(planning, "plan_apart", lambda config, **_: made(exchanges=exchanges, unknown_loops=1))
    file = toml(settings(), tmp_path / "run.toml")
    assert cli.main(["plan", file, "--mesh", "data=8", "--memory", "1e10"]) == 0
    out, _ = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert "64 rows on data 8 x fsdp 1 x tensor 1: the CPU compiler's estimate" in out
    assert ["parameters", "10,240.0"] in lines
    assert ["all-gather", "fsdp", "3.0", "12.0", "4"] in lines
    assert ["teacher", "0.0"] not in lines
    assert "on v5e, changed (197 TFLOP/s, 100 GB/s along an axis" in out
    assert "Does not fit: " in out
    assert "1 loops of unknown length count as one round each" in out

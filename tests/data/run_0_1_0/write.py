"""Writes runs.tar.xz: one interrupted run of each kind, its data and models, and where it ended undisturbed.

    python write.py /mnt/first

What stands in the archive was written by 0.1.0 (commit 135614f) with jax 0.10.2 on 8 virtual CPU devices. It is not
written again; of a later release the same program makes the next archive.
"""

import io
import json
import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import sentencepiece
from PIL import Image

from altclip_jax import AltCLIPConfig, AltCLIPImageProcessor, AltCLIPModel, AltCLIPProcessor, CLIPConfig, CLIPModel
from altclip_jax.assets import PICTURES
from altclip_jax.processing.tokenizer import load_tokenizer
from altclip_jax.training.config import RunConfig
from altclip_jax.training.log import RunLog
from altclip_jax.training.loop import train

STOPPED_AFTER = 3
COMMON = """
folder = "{folder}"
steps = 6
batch_size = 8
[optimizer]
learning_rate = 1e-2
warmup_steps = 1
[checkpoints]
every = 10
[logging]
every = 1
[evaluation]
every = 3
batch_size = 8
[model]
source = "../models/student"
"""
PICTURE_DATA = """
[data]
max_length = 10
store_image_features = {stored}
[[data.train]]
path = "../data/list.jsonl"
weight = 2
[[data.train]]
path = "../data/shards/*.tar"
[[data.evaluate]]
path = "../data/list.jsonl"
"""
RUNS = {
    "pictures": 'stage = "contrastive"' + COMMON + PICTURE_DATA.format(stored="false"),
    "stored": 'stage = "contrastive"' + COMMON + PICTURE_DATA.format(stored="true"),
    "teacher": 'stage = "teacher"'
    + COMMON
    + """
[teacher]
source = "../models/clip"
max_length = 16
[data]
max_length = 10
[[data.train]]
path = "../data/parallel.tsv"
[[data.evaluate]]
path = "../data/parallel.tsv"
""",
}


def main(folder: Path) -> None:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    jax.config.update("jax_default_matmul_precision", "highest")
    names = {thing: {lang: names[lang] for lang in ("en", "fr")} for thing, names in captions().items()}
    write_data(folder / "data", names)
    write_models(folder / "models", names)
    (folder / "runs").mkdir()
    (folder / "ends").mkdir()
    for name, text in RUNS.items():
        file = folder / "runs" / f"{name}.toml"
        file.write_text(text.lstrip().format(folder=folder / "runs" / name))
        whole = RunConfig.read(file, [f"folder={folder / 'whole' / name}"])
        assert train(whole, quiet=True).step == 6
        shutil.copy(Path(whole.folder) / "metrics.jsonl", folder / "ends" / f"{name}.jsonl")
        shutil.copy(Path(whole.folder) / "export" / "model.safetensors", folder / "ends" / f"{name}.safetensors")
        stop_after(STOPPED_AFTER)
        assert train(RunConfig.read(file), quiet=True).step == STOPPED_AFTER
    shutil.rmtree(folder / "whole")
    with tarfile.open(Path(__file__).parent / "runs.tar.xz", "w:xz", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder), recursive=False, filter=nobody)


def captions() -> dict[str, dict[str, str]]:
    return json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))


def nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def stop_after(step: int) -> None:
    plain = RunLog.train

    def then_stop(self, at, metrics, left):
        plain(self, at, metrics, left)
        if at == step:
            RunLog.train = plain
            signal.raise_signal(signal.SIGTERM)

    RunLog.train = then_stop


def photo(number: int) -> bytes:
    """A picture that looks otherwise when it is turned; every third one says in its EXIF that it lies on its side."""
    rng = np.random.default_rng(number)
    pixels = np.zeros((24, 32, 3), np.uint8) + rng.integers(0, 256, 3).astype(np.uint8)
    pixels[: rng.integers(6, 18), : rng.integers(8, 24)] = rng.integers(0, 256, 3)
    exif = Image.Exif()
    if number % 3 == 0:
        exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80, exif=exif)
    return file.getvalue()


def write_data(folder: Path, names: dict[str, dict[str, str]]) -> None:
    (folder / "photos").mkdir(parents=True)
    (folder / "shards").mkdir()
    things = list(names)
    with (folder / "list.jsonl").open("w", encoding="utf-8") as file:
        for number, thing in enumerate(things[:10]):
            (folder / "photos" / f"{thing}.jpg").write_bytes(photo(number))
            line = {"image": f"photos/{thing}.jpg", "captions": names[thing]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"{shard:05}.tar", "w") as tar:
            for number, thing in list(enumerate(things))[10 + 4 * shard : 14 + 4 * shard]:
                for ending, data in (("jpg", photo(number)), ("txt", names[thing]["en"].encode())):
                    member = tarfile.TarInfo(f"{number:03}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    with (folder / "parallel.tsv").open("w", encoding="utf-8") as file:
        file.write("source\ttarget\tlanguage\n")
        file.writelines(f"{own['en']}\t{own['fr']}\tfr\n" for own in names.values())
    for path in folder.rglob("*"):  # whole seconds, which an archive keeps: by its time a stored feature knows its file
        os.utime(path, (1_750_000_000, 1_750_000_000))


def write_models(folder: Path, names: dict[str, dict[str, str]]) -> None:
    student, clip = folder / "student", folder / "clip"
    student.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for own in names.values() for text in own.values()]),
        model_prefix=str(student / "sentencepiece.bpe"),
        vocab_size=120,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (student / "sentencepiece.bpe.vocab").unlink()
    tokenizer = load_tokenizer(student)
    images = AltCLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = AltCLIPProcessor(images, tokenizer)
    towers = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**towers, "image_size": 16, "patch_size": 8}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    text = {**towers, **still, "vocab_size": 128, "max_position_embeddings": 16, "project_dim": 8}
    model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(student, model.init_params(jax.random.key(0)))
    processor.save_pretrained(student)

    clip.mkdir()
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (clip / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (clip / "merges.txt").write_text("#version: 0.2\n")
    words = {**towers, "vocab_size": len(pieces), "max_position_embeddings": 16, "eos_token_id": len(pieces) - 1}
    teacher = CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=8))
    teacher.save_pretrained(clip, teacher.init_params(jax.random.key(1)))
    AltCLIPProcessor(images, load_tokenizer(clip)).save_pretrained(clip)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

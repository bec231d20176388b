"""Small made copies of the public benchmarks, in the layouts in which they are published."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altclip_jax.assets import PICTURES

NAMES = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
KEYS = sorted(NAMES)


def put_jpeg(path, key):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(PICTURES / f"{key}_noto.png").convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    Image.alpha_composite(white, picture).convert("RGB").save(path, "jpeg", quality=95)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def coco_name(place):
    return f"COCO_{'train2014' if place % 3 == 0 else 'val2014'}_{place:012}"


def make_flickr(data):
    """Six pictures of the test split with two captions each, and two of another split."""
    images = []
    for place, key in enumerate(KEYS[:8]):
        put_jpeg(data / "flickr30k" / "flickr30k-images" / f"{1000 + place}.jpg", key)
        raws = [NAMES[key]["en"], f"a {NAMES[key]['en']} ."]
        sentences = [{"raw": raw, "tokens": raw.split(), "imgid": place, "sentid": 2 * place} for raw in raws]
        split = "test" if place < 6 else "train"
        images.append({"filename": f"{1000 + place}.jpg", "imgid": place, "split": split, "sentences": sentences})
    write(data / "flickr30k" / "dataset_flickr30k.json", json.dumps({"images": images, "dataset": "flickr30k"}))
    lines = [f"{1000 + place}.jpg#zhm#{n} {NAMES[key]['zh']}" for place, key in enumerate(KEYS[:6]) for n in range(2)]
    write(data / "flickr30k" / "flickr30k_cn_test.txt", "\n".join(lines) + "\n")


def make_coco(data):
    """Twelve pictures: those of MSCOCO, of COCO-CN, and of XTD."""
    names = [coco_name(place) for place in range(12)]
    for name, key in zip(names, KEYS, strict=False):
        put_jpeg(data / "coco" / name.split("_")[1] / f"{name}.jpg", key)
    images = [
        {
            "filepath": name.split("_")[1],
            "filename": f"{name}.jpg",
            "cocoid": place,
            "split": "test" if place < 9 else "restval",
            "sentences": [{"raw": NAMES[KEYS[place]]["en"]}] * (1 + place % 2),
        }
        for place, name in enumerate(names)
    ]
    write(data / "coco" / "dataset_coco.json", json.dumps({"images": images, "dataset": "coco"}))
    two = [place for place, name in enumerate(names) if "val2014" in name][:2]
    captions = {
        "images": [{"id": place, "file_name": f"{names[place]}.jpg"} for place in two],
        "annotations": [{"image_id": place, "id": place, "caption": NAMES[KEYS[place]]["en"]} for place in two],
    }
    write(data / "coco" / "annotations" / "captions_val2014.json", json.dumps(captions))
    test = names[:5]
    write(data / "coco-cn" / "coco-cn_test.txt", "\n".join(test) + "\n")
    human = [f"{name}#0\t{NAMES[KEYS[place]]['zh']}" for place, name in enumerate(names[:7])]
    write(data / "coco-cn" / "imageid.human-written-caption.txt", "\n".join(human) + "\n")
    five = [f"{name}#{n}\t{NAMES[KEYS[place]]['zh']}{n}" for place, name in enumerate(test) for n in range(5)]
    write(data / "coco-cn" / "imageid.manually-translated-caption.txt", "\n".join(five) + "\n")
    write(data / "xtd10" / "test_image_names.txt", "\n".join(f"{name}.jpg" for name in names) + "\n")
    for code, language in (("en", "en"), ("jp", "ja"), ("de", "de")):
        lines = [NAMES[key][language] for key in KEYS[:12]]
        write(data / "xtd10" / f"test_1kcaptions_{code}.txt", "\n".join(lines) + "\n")


def make_imagenet(data):
    """Two pictures of each of five classes; -A has two of the classes, -V2 numbers them."""
    ids = [f"n0{place}" for place in range(5)]
    for place, key in enumerate(KEYS[:5]):
        for number in range(2):
            put_jpeg(data / "imagenet" / "val" / ids[place] / f"ILSVRC2012_val_{place}{number}.JPEG", key)
        put_jpeg(data / "imagenetv2-matched-frequency-format-val" / str(place) / "a.jpeg", key)
        put_jpeg(data / "imagenet-r" / ids[place] / "art_0.jpg", key)
        put_jpeg(data / "sketch" / ids[place] / "sketch_0.JPEG", key)
    for place in (1, 3):
        put_jpeg(data / "imagenet-a" / ids[place] / "0.jpg", KEYS[place])
    names = {"classes": ids, **{lang: [NAMES[key][lang] for key in KEYS[:5]] for lang in ("en", "zh")}}
    write(data / "imagenet" / "classes.json", json.dumps(names))
    write(data / "imagenet" / "templates.json", json.dumps({"en": ["{}", "a {}."]}))


class Python2Array:
    """Pickles as an array of bytes does in Python 2: the values in a byte string of its own."""

    def __init__(self, values):
        self.values = values

    def __reduce__(self):
        state = (1, self.values.shape, np.dtype("u1"), False, self.values.tobytes())
        return np.zeros(0, "u1").__reduce__()[0], (np.ndarray, (0,), b"b"), state


def make_cifar(data):
    folder = data / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (20, 3072), np.uint8)
    batch = {b"data": Python2Array(rows), b"labels": [place % 10 for place in range(20)], b"batch_label": b"testing"}
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    names = b"airplane automobile bird cat deer dog frog horse ship truck".split()
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names, b"num_vis": 3072}, protocol=2))
    return rows


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    make_flickr(folder)
    make_coco(folder)
    make_imagenet(folder)
    make_cifar(folder)
    return folder


@pytest.fixture
def decoded():
    return lambda picture: np.asarray(Image.open(io.BytesIO(picture.read())).convert("RGB"))

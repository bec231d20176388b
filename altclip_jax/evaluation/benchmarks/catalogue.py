"""The benchmarks of the paper: how it is seen that they are there, and how they are opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from altclip_jax.evaluation.benchmarks import captions
from altclip_jax.evaluation.benchmarks.cifar import cifar10
from altclip_jax.evaluation.benchmarks.imagenet import Classification, imagenet
from altclip_jax.evaluation.collection import Collection

Opened = Collection | Classification
_PHOTOS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
CIFAR_TEMPLATES = tuple(
    template
    for article in ("a", "the")
    for template in (
        *(f"a {kind}photo of {article} {{}}." for kind in _PHOTOS),
        *(f"a photo of {article} {size} {{}}." for size in ("small", "big")),
    )
)
"""The 18 prompts of Radford et al. 2021 for CIFAR-10."""
_FLICKR_IMAGES = ("flickr30k-images", "flickr30k_images", "Images", "images")
_COCO_CN = ("coco-cn", "coco-cn-version1805v1.1")


class Benchmark(NamedTuple):
    """A benchmark.

    Attributes:
        name: As in published.toml.
        signs: Files or folders below the data, one of which tells that it is there.
        open: Opens it, given the data and the sign that was found.
    """

    name: str
    signs: tuple[str, ...]
    open: Callable[[Path, Path], Opened]

    def sign(self, data: Path) -> Path | None:
        """Returns the file or folder that tells that it is there, if it is."""
        return next((data / sign for sign in self.signs if (data / sign).exists()), None)


def _flickr(data: Path, sign: Path) -> Opened:
    images = next((sign.parent / name for name in _FLICKR_IMAGES if (sign.parent / name).is_dir()), sign.parent)
    return captions.karpathy(sign, images) if sign.suffix == ".json" else captions.flickr30k_cn(sign, images)


def _coco_captions(data: Path, sign: Path) -> Opened:
    return captions.coco_captions(sign, data / "coco" / sign.stem.removeprefix("captions_"))


def _coco_cn(data: Path, sign: Path) -> Opened:
    return captions.coco_cn(sign.parent, sign.name, data / "coco")


def _imagenet(data: Path, sign: Path) -> Opened:
    return imagenet(sign, data / "imagenet")


def _cifar10(data: Path, sign: Path) -> Opened:
    return Classification(*cifar10(sign.parent), {"en": CIFAR_TEMPLATES})


BENCHMARKS = (
    Benchmark("flickr30k", ("flickr30k/dataset_flickr30k.json",), _flickr),
    Benchmark("flickr30k-cn", ("flickr30k/flickr30k_cn_test.txt",), _flickr),
    Benchmark("mscoco", ("coco/dataset_coco.json",), lambda data, sign: captions.karpathy(sign, data / "coco")),
    Benchmark("mscoco-val2014", ("coco/annotations/captions_val2014.json",), _coco_captions),
    Benchmark("mscoco-val2017", ("coco/annotations/captions_val2017.json",), _coco_captions),
    Benchmark("coco-cn-1k", tuple(f"{name}/imageid.human-written-caption.txt" for name in _COCO_CN), _coco_cn),
    Benchmark("coco-cn-5k", tuple(f"{name}/imageid.manually-translated-caption.txt" for name in _COCO_CN), _coco_cn),
    Benchmark("xtd", ("xtd10/test_image_names.txt",), lambda data, sign: captions.xtd(sign.parent, data / "coco")),
    Benchmark("imagenet", ("imagenet/val",), _imagenet),
    Benchmark("imagenet-sketch", ("imagenet-sketch", "sketch"), _imagenet),
    Benchmark("imagenet-a", ("imagenet-a",), _imagenet),
    Benchmark("imagenet-r", ("imagenet-r",), _imagenet),
    Benchmark("imagenet-v2", ("imagenetv2-matched-frequency-format-val",), _imagenet),
    Benchmark("cifar10", ("cifar-10-batches-py/test_batch",), _cifar10),
)

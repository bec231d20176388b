"""Compare this library with transformers at full size: embeddings, logits and the answers they lead to.

Without arguments transformers writes a checkpoint of the BAAI/AltCLIP configuration (864,186,113 parameters) with every
tensor randomised, and real photographs and captions in nine languages go through both. With --model a folder with
real weights is compared instead, and the published numbers of transformers' own tests are checked where they apply.

    python -m scripts.parity.check --tokenizer tests/data/xlmr
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import numpy as np

from altclip_jax import AltCLIPConfig, AltCLIPModel, AltCLIPProcessor, AltCLIPVisionModel
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.processing.tokenizer import AltCLIPTokenizer

CAPTIONS = [
    "a cup of coffee on a wooden table",
    "一杯咖啡放在木桌上",
    "una taza de café sobre una mesa de madera",
    "une astronaute en combinaison spatiale orange",
    "фотография кошки с голубыми глазами",
    "صورة صاروخ على منصة الإطلاق",
    "ロケットの打ち上げ",
    "꽃 한 송이의 사진",
    "un tempio cinese con un tetto colorato",
    "the deep field of the Hubble telescope, with hundreds of galaxies of every colour and age",
    "cat",
    "网膜的照片",
]
# transformers' own integration test of BAAI/AltCLIP; facts measured by its authors
CATS: dict[str, Any] = {
    "texts": ["一张猫的照片", "一张狗的照片"],
    "probabilities": [9.9942e-01, 5.7805e-04],
    "tolerance": 5e-3,
}

CATS_AT_180 = [[-0.3589, -0.5939, 0.3534], [0.4346, 0.1647, 0.7071], [1.1404, -0.4716, 0.1664]]


def main() -> int:
    """Run the comparison; exit code 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder with real weights")
    parser.add_argument("--tokenizer", type=Path, default=Path("tests/data/xlmr"), help="default: %(default)s")
    parser.add_argument("--cats", type=Path, help="COCO val2017 000000039769.jpg, to check the published probabilities")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=5e-6, help="on unit embeddings; default: %(default)s")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or randomised_checkpoint(Path(temporary), options.seed)
        processor = (
            AltCLIPProcessor.from_pretrained(folder)
            if options.model
            else AltCLIPProcessor(
                image_processor=AltCLIPImageProcessor(), tokenizer=AltCLIPTokenizer.from_pretrained(options.tokenizer)
            )
        )
        batch = processor(text=CAPTIONS, images=photographs(), padding=True)
        reference = transformers_outputs(folder, batch, "float32")
        exact = transformers_outputs(folder, batch, "float64")
        ours = our_outputs(folder, batch)
        report = compare(ours, reference, exact)
        if options.cats:
            report["cats"] = check_cats(folder, processor, options.cats)
    report |= {
        "seed": options.seed,
        "checkpoint": str(options.model or "randomised"),
        "processor": platform.processor() or platform.machine(),
        "peak_resident_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    report["passed"] = bool(
        max(report["text_embeds"]["ours_to_reference"], report["image_embeds"]["ours_to_reference"])
        <= max(options.tolerance, report["noise_limit"])
        and report["argmax"]["agreeing"] == report["argmax"]["counted"]
        and report.get("cats", {"passed": True})["passed"]
    )
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 0 if report["passed"] else 1


def randomised_checkpoint(folder: Path, seed: int) -> Path:
    """Let transformers write the full-size model, every tensor random at a scale that keeps activations of order 1."""
    import torch
    from transformers import AltCLIPConfig as ReferenceConfig
    from transformers import AltCLIPModel as ReferenceModel

    AltCLIPConfig.altclip().save(folder)
    model = ReferenceModel(ReferenceConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                parameter.fill_(4.6)  # about the trained value, 100
                continue
            parameter.normal_(generator=generator)
            if parameter.ndim == 1:
                parameter.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
            elif "embedding" in name and "patch" not in name:
                parameter.mul_(0.5)
            else:
                parameter.mul_(parameter[0].numel() ** -0.5)
    model.save_pretrained(folder, max_shard_size="2GB")
    del model
    gc.collect()
    return folder


def photographs() -> list[Any]:
    """Real photographs that scikit-image and scikit-learn carry."""
    import skimage
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder = Path(skimage.__file__).parent / "data"
    names = ["coffee.png", "astronaut.png", "chelsea.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg"]
    return [*(Image.open(folder / name).convert("RGB") for name in names), *load_sample_images().images]


def transformers_outputs(folder: Path, batch: dict[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """Return embeddings and logits of the reference; in float64 they are the measure of float32's own noise."""
    import torch
    from transformers import AltCLIPModel as ReferenceModel

    model = ReferenceModel.from_pretrained(folder, dtype=torch.float32).eval().to(getattr(torch, dtype))
    given = {name: torch.tensor(value) for name, value in batch.items()}
    given["pixel_values"] = given["pixel_values"].to(getattr(torch, dtype))
    with torch.no_grad():
        outputs = model(**given)
    found = {name: outputs[name].double().numpy() for name in ("text_embeds", "image_embeds", "logits_per_image")}
    del model, outputs
    gc.collect()
    return found


def our_outputs(folder: Path, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return embeddings and logits of this library, jitted."""
    model, params = AltCLIPModel.from_pretrained(folder)
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(model.apply)({"params": params}, **batch)
    names = ("text_embeds", "image_embeds", "logits_per_image")
    return {name: np.asarray(getattr(outputs, name), np.float64) for name in names}


def compare(ours: dict[str, Any], reference: dict[str, Any], exact: dict[str, Any]) -> dict[str, Any]:
    """Return the largest differences, and how often the best text of a picture and the best picture of a text agree."""
    report: dict[str, Any] = {}
    for name in ours:
        report[name] = {
            "ours_to_reference": float(np.abs(ours[name] - reference[name]).max()),
            "ours_to_float64": float(np.abs(ours[name] - exact[name]).max()),
            "reference_to_float64": float(np.abs(reference[name] - exact[name]).max()),
        }
    # two float32 computations differ by the sum of what each is off
    report["noise_limit"] = 2 * max(report[name]["reference_to_float64"] for name in ("text_embeds", "image_embeds"))
    noise = report["logits_per_image"]["reference_to_float64"]
    counted = agreeing = rows = 0
    smallest = float("inf")
    left_logits, right_logits = ours["logits_per_image"], reference["logits_per_image"]
    for left, right in ((left_logits, right_logits), (left_logits.T, right_logits.T)):
        ordered = np.sort(right, axis=1)
        margins = ordered[:, -1] - ordered[:, -2]
        clear = margins > 10 * noise
        rows += len(margins)
        counted += int(clear.sum())
        agreeing += int((left.argmax(1) == right.argmax(1))[clear].sum())
        smallest = min(smallest, float(margins.min()))
    report["argmax"] = {"rows": rows, "counted": counted, "agreeing": agreeing, "smallest_margin": smallest}
    return report


def check_cats(folder: Path, processor: AltCLIPProcessor, picture: Path) -> dict[str, Any]:
    """Check the published probabilities of the two-cats picture, and its first states at 180 x 180 pixels."""
    model, params = AltCLIPModel.from_pretrained(folder)
    outputs = model.apply({"params": params}, **processor(images=picture, text=CATS["texts"], padding=True))
    found = np.asarray(jax.nn.softmax(outputs.logits_per_image, axis=1))[0]
    small = processor(images=picture, size={"shortest_edge": 180}, crop_size={"height": 180, "width": 180})
    vision = AltCLIPVisionModel(model.config.vision_config)
    states = vision.apply({"params": params["vision_model"]}, **small, interpolate_pos_encoding=True).last_hidden_state
    corner = np.asarray(states[0, :3, :3])
    passed = np.allclose(found, CATS["probabilities"], rtol=CATS["tolerance"], atol=CATS["tolerance"])
    passed &= np.allclose(corner, CATS_AT_180, rtol=1e-4, atol=1e-4)
    return {
        "found": found.tolist(),
        "published": CATS["probabilities"],
        "states_found": corner.tolist(),
        "states_published": CATS_AT_180,
        "passed": bool(passed),
    }


def as_text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [f"checkpoint {report['checkpoint']}, seed {report['seed']}, {report['processor']}"]
    for name in ("text_embeds", "image_embeds", "logits_per_image"):
        values = ", ".join(f"{key.replace('_', ' ')} {value:.2e}" for key, value in report[name].items())
        lines.append(f"{name:17} largest difference: {values}")
    argmax = report["argmax"]
    lines.append(
        f"argmax            {argmax['agreeing']} of {argmax['counted']} rows agree whose margin exceeds ten times the"
        f" noise ({argmax['rows']} rows, smallest margin {argmax['smallest_margin']:.2e})"
    )
    if "cats" in report:
        lines.append(f"published example {report['cats']}")
    lines.append(f"peak memory       {report['peak_resident_gb']} GB")
    lines.append("PASSED" if report["passed"] else "FAILED")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""transformers reads the embedded model, and gives what we give for pictures and names in eleven languages."""

import json

import jax
import numpy as np
import torch
import transformers

from altclip_jax import AltCLIPModel, AltCLIPProcessor
from altclip_jax.assets import PICTURES, default_checkpoint


def test_the_embedded_model_answers_alike_in_both_libraries():
    folder = default_checkpoint()
    names = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
    texts = [name for captions in names.values() for name in captions.values()]
    pictures = [PICTURES / f"{thing}_{design}.png" for thing in names for design in ("noto", "fxemoji")]
    batch = AltCLIPProcessor.from_pretrained(folder)(images=pictures, text=texts, padding=True)
    theirs_batch = transformers.AutoProcessor.from_pretrained(folder)(
        images=[transformers.image_utils.load_image(str(path)) for path in pictures],
        text=texts,
        padding=True,
        return_tensors="pt",
    )
    for name, values in batch.items():
        np.testing.assert_array_equal(values, theirs_batch[name].numpy(), err_msg=name)
    model, params = AltCLIPModel.from_pretrained(folder)
    reference, report = transformers.AltCLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours = jax.jit(model.apply)({"params": params}, **batch)
    with torch.inference_mode():
        theirs = reference.eval()(**theirs_batch)
    for name, tolerance in (("text_embeds", 1e-6), ("image_embeds", 1e-6), ("logits_per_image", 1e-4)):
        np.testing.assert_allclose(getattr(ours, name), theirs[name].numpy(), rtol=0, atol=tolerance, err_msg=name)

"""transformers refuses weights in few bits, and reads what is made float of them."""

import numpy as np
import pytest
import torch
from transformers import AltCLIPModel as ReferenceModel

from altclip_jax import AltCLIPModel
from altclip_jax.assets import default_checkpoint
from altclip_jax.quantization.leaves import dequantize


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_transformers_refuses_few_bits_and_reads_the_floats_they_give(scheme, tmp_path):
    model, params = AltCLIPModel.from_pretrained(default_checkpoint(), quantize=scheme)
    model.save_pretrained(tmp_path / "small", params)
    with pytest.raises(ValueError, match="Incompatible safetensors file"):
        ReferenceModel.from_pretrained(tmp_path / "small")
    model.save_pretrained(tmp_path / "float", dequantize(params))
    reference, report = ReferenceModel.from_pretrained(tmp_path / "float", output_loading_info=True)
    assert not any(report.values())
    ids = np.array([[0, 5, 6, 7, 2]])
    features = model.apply({"params": params}, ids, np.ones_like(ids), method="get_text_features")
    with torch.no_grad():
        expected = reference.eval().get_text_features(torch.tensor(ids), torch.ones(1, 5)).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(features) / scale, expected / scale, atol=1e-5)

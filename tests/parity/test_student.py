"""A student made of checkpoints that transformers wrote computes what they compute."""

import numpy as np
import pytest
import torch
import transformers

from altclip_jax import AltCLIPModel, AltCLIPProcessor, student
from altclip_jax.assets import default_checkpoint

XLMR = {
    "vocab_size": 8000,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.2,
    "initializer_range": 0.05,
}


@pytest.fixture(scope="module")
def text_model():
    torch.manual_seed(0)
    model = transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**XLMR)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape) + (parameter.ndim == 1))
    return model


@pytest.fixture(scope="module")
def clip(make_clip_reference):
    reference, folder = make_clip_reference()
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=30, image_mean=[0.4] * 3).save_pretrained(
        folder
    )
    return reference, folder


@pytest.mark.parametrize("head", ["masked language model", "none", "none, with pooler, as .bin"])
def test_a_student_has_the_towers_of_its_sources(text_model, clip, head, tmp_path):
    reference, clip_folder = clip
    if head == "none":
        text_model.roberta.save_pretrained(tmp_path / "text")
    elif head == "masked language model":
        text_model.save_pretrained(tmp_path / "text")
    else:
        pooled = transformers.XLMRobertaModel(text_model.config)
        pooled.load_state_dict(text_model.roberta.state_dict(), strict=False)
        pooled.save_pretrained(tmp_path / "text", safe_serialization=False)
    made = student.start(
        tmp_path / "student", text=tmp_path / "text", clip=clip_folder, tokenizer=default_checkpoint(), seed=3
    )
    assert made.initialised == (
        "text_model/final_norm/bias",
        "text_model/final_norm/scale",
        "text_model/transformation/bias",
        "text_model/transformation/kernel",
    )
    assert sorted(made.taken.values()) == [5 + 16 * 2, 7 + 16 * 3 + 3]

    theirs, told = transformers.AltCLIPModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(told.values()), told
    config = theirs.config.text_config
    assert (config.project_dim, config.hidden_dropout_prob, config.initializer_factor) == (24, 0.2, 0.05)
    assert torch.equal(theirs.text_projection.weight, reference.text_projection.weight)
    assert torch.equal(theirs.logit_scale, reference.logit_scale)

    model, params = AltCLIPModel.from_pretrained(tmp_path / "student")
    ids = np.random.default_rng(0).integers(3, 8000, (3, 9))
    ids[0, 6:] = 1
    mask, pixels = ids != 1, np.random.default_rng(1).standard_normal((2, 3, 30, 30), dtype=np.float32)
    ours = model.apply({"params": params}, ids, pixels, mask, output_hidden_states=True)
    expected = text_model.roberta(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    np.testing.assert_allclose(ours.text_model_output.hidden_states[-1], expected.detach().numpy(), rtol=0, atol=2e-5)
    features = model.apply({"params": params}, pixels, method="get_image_features")
    expected = reference.get_image_features(torch.tensor(pixels)).detach().numpy()
    np.testing.assert_allclose(features, expected, rtol=0, atol=2e-5)
    kernel = np.asarray(params["text_model"]["transformation"]["kernel"])
    assert 0.04 < kernel.std() < 0.06

    processor = AltCLIPProcessor.from_pretrained(tmp_path / "student")
    assert processor.tokenizer.model_max_length == 40 - 2
    assert processor.image_processor.image_mean == (0.4,) * 3
    batch = transformers.AltCLIPProcessor.from_pretrained(tmp_path / "student")(text=["a cat"], padding=True)
    assert batch["input_ids"][0] == processor(text=["a cat"])["input_ids"][0].tolist()


def test_a_text_checkpoint_that_lacks_something_is_refused_with_all_its_faults(text_model, clip, tmp_path):
    broken = transformers.XLMRobertaModel(text_model.config)
    del broken.encoder.layer[1].output.LayerNorm, broken.embeddings.LayerNorm
    broken.extra = torch.nn.Linear(2, 3)
    broken.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="does not fit the configuration: 6 faults") as caught:
        student.start(tmp_path / "new", text=tmp_path / "text", clip=clip[1], tokenizer=default_checkpoint())
    assert "missing: roberta.encoder.layer.1.output.LayerNorm.weight (16,)" in str(caught.value)
    assert "unexpected: extra.bias (3,)" in str(caught.value)
    assert not (tmp_path / "new").exists()

"""What trains and what does not."""

import numpy as np
import pytest

from altclip_jax.training.state import merge, split
from altclip_jax.weights.convert import flatten

PARAMS = {
    "text_model": {"layer_0": {"kernel": np.ones(2), "bias": np.ones(1)}, "final_norm": {"scale": np.ones(3)}},
    "vision_model": {"class_embedding": np.ones(4)},
    "logit_scale": np.ones(()),
}


def test_split_and_merge_are_inverse():
    trained, locked = split(PARAMS, ["text_model", "logit_scale"], [".*/final_norm/.*"])
    assert sorted(flatten(trained)) == ["logit_scale", "text_model/layer_0/bias", "text_model/layer_0/kernel"]
    assert sorted(flatten(locked)) == ["text_model/final_norm/scale", "vision_model/class_embedding"]
    assert flatten(merge(trained, locked)).keys() == flatten(PARAMS).keys()


def test_typing_errors_in_rules_are_named():
    with pytest.raises(
        ValueError, match="'text' is no part of this model, whose parts are text_model, vision_model, logit_scale"
    ):
        split(PARAMS, ["text"])
    with pytest.raises(ValueError, match="frozen='layer_0' matches no parameter"):
        split(PARAMS, ["text_model"], ["layer_0"])
    with pytest.raises(ValueError, match="nothing to train"):
        split(PARAMS, ["logit_scale"], ["logit_scale"])

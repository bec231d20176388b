"""A small model, the loader of docs/examples, and one export that tests read."""

import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from altclip_jax import AltCLIP, AltCLIPModel
from altclip_jax.export.folder import export_program
from altclip_jax.weights.convert import flatten, unflatten

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="session")
def loader():
    """The module docs/examples/load_exported.py."""
    sys.path.insert(0, str(EXAMPLES))
    import load_exported

    yield load_exported
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="session")
def make_clip():
    """Returns a function that gives the embedded model with one layer in each tower, which compiles fast."""
    whole = AltCLIP.from_pretrained()

    def make(dtype="float32", quantize=None):
        towers = ("text_config", "vision_config")
        config = whole.model.config
        config = config.replace(**{name: getattr(config, name).replace(num_hidden_layers=1) for name in towers})
        model = AltCLIPModel(config, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
        flat = flatten(whole.params)
        params = unflatten({path: jnp.asarray(flat[path], dtype) for path in flatten(model.param_shapes())})
        params = params if quantize is None else model.quantize_params(params, quantize)
        return AltCLIP(model, params, whole.processor)

    return make


@pytest.fixture(scope="session")
def clip(make_clip):
    return make_clip()


@pytest.fixture(scope="session")
def exported(clip, tmp_path_factory):
    """A folder with every program, and two executables; read only."""
    folder = tmp_path_factory.mktemp("exported") / "programs"
    export_program(clip, folder, programs=("text", "image", "both"), executables=[(4, 16), (2,)])
    return folder

"""The models that users know: the networks of `altclip_jax.model`, from and to checkpoints."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from altclip_jax import parallel
from altclip_jax.config import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
)
from altclip_jax.model.inputs import example_inputs
from altclip_jax.model.layers import AttentionImplementation, Part, Remat
from altclip_jax.model.text import CLIPTextTower, CLIPTextTowerWithProjection, TextTower
from altclip_jax.model.two_towers import TwoTowers
from altclip_jax.model.vision import VisionTower
from altclip_jax.quantization.leaves import is_quantized
from altclip_jax.quantization.rules import QuantizationRule, choose_forms
from altclip_jax.weights import folder as weights_folder
from altclip_jax.weights.convert import Params, flatten, quantize_tree, unflatten
from altclip_jax.weights.families import ALTCLIP, CLIP
from altclip_jax.weights.rules import RuleTable


class PretrainedModel(Part):
    """A network that knows its configuration class, the names in its files, and which part of a full model it is."""

    config_class: ClassVar[Any]
    rule_table: ClassVar[RuleTable] = ALTCLIP
    params_prefix: ClassVar[str]

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        quantize: str | Sequence[QuantizationRule] | None = None,
        attention_implementation: AttentionImplementation = "plain",
        remat: Remat = False,
        mesh: Mesh | None = None,
    ) -> tuple[Self, Params]:
        """Returns the model and its parameters, a plain nested dict of arrays.

        A tower's class also reads a full checkpoint and takes its own part. Files are looked for in this order:
        model.safetensors, its shards, pytorch_model.bin, its shards; .bin files are read without torch, and no code
        in them is run. A float checkpoint is never held whole in another dtype than `param_dtype`; one that is
        quantized on disk is loaded as it is, without being asked for.

        Args:
            source: A folder with config.json and weights, or the id of a hub repository such as "BAAI/AltCLIP".
            dtype: Computes: float32 (also for None), bfloat16 or float16.
            param_dtype: Stores, likewise: the parameters' dtype in memory, float32 for None, whatever the file has and
                whatever `dtype` is. Only this saves memory: "bfloat16" halves it.
            revision: Branch, tag or commit of a hub repository.
            local_files_only: Use what has been downloaded before, never the network.
            cache_dir: Where downloads are kept, instead of the hub's usual place.
            quantize: "int8", "int4" or rules (see `altclip_jax.quantization.rules`): kernels and tables are stored in
                few bits while the file is read, and made arrays of `param_dtype` layer by layer where they are used.
            attention_implementation: "plain", "xla" or "cudnn".
            remat: False, True or "dots": what of each layer the backward pass recomputes.
            mesh: Devices over which the parameters are dealt, as `altclip_jax.parallel` says. Each process reads of the
                files only the slices that its own devices keep, and no device gets more. None: one device.

        Raises:
            CheckpointError: the weights do not fit the configuration or a file is damaged; all faults are named.
            ValueError: the weights cannot be quantized as asked.
            OSError: there is no such folder, file or repository, or no network.
        """
        model, params = weights_folder.load(
            cls,
            source,
            dtype=dtype,
            param_dtype=param_dtype,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
            quantize=quantize,
            attention_implementation=attention_implementation,
            remat=remat,
            place=None if mesh is None else functools.partial(parallel.param_shardings, mesh, prefix=cls.params_prefix),
        )
        return model, params

    @nn.nowrap
    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        params: Params,
        *,
        dtype: DTypeLike | None = None,
        max_shard_bytes: int = 5_000_000_000,
    ) -> None:
        """Writes config.json and safetensors that transformers 4.56.2 loads without a missing or unexpected key.

        Parameters in few bits are written so, which transformers refuses.

        Args:
            folder: Where to; made if absent. config.json and all weights there are replaced in one step: whoever loads
                from there meanwhile, or after this was killed, gets the earlier model or this one. A processor there
                stays; `AltCLIP.save_pretrained` replaces both.
            params: The parameters of this model.
            dtype: Dtype in the file; None keeps that of each parameter.
            max_shard_bytes: Above this, several files and an index are written.

        Raises:
            ValueError: the parameters are not those of this model; every difference is named.
            CheckpointError: finite numbers would be infinite in `dtype`; all tensors that have some are named.
            FileExistsError: the folder is that of a run, a store, an index or programs.
            OSError: the file system refused.
        """
        weights_folder.save(self, folder, params, dtype=dtype, max_shard_bytes=max_shard_bytes)

    @nn.nowrap
    def quantize_params(self, params: Params, quantize: str | Sequence[QuantizationRule]) -> Params:
        """Returns parameters of which kernels and tables are stored in few bits, on one device.

        Args:
            params: Those of this model.
            quantize: "int8", "int4" or rules, as in `from_pretrained`, which needs less memory.

        Raises:
            ValueError: the rules do not fit the model, or some of it is quantized already.
        """
        if is_quantized(params):
            raise ValueError("These parameters are quantized already: quantize the float ones they were made of.")
        forms = choose_forms(flatten(params), quantize, self.params_prefix)
        return quantize_tree(params, forms, table=self.rule_table, prefix=self.params_prefix)

    @nn.nowrap
    def init_params(
        self, key: Array, wanted: Callable[[str], bool] = lambda path: True, *, mesh: Mesh | None = None
    ) -> Params:
        """Returns freshly initialised parameters, distributed as in the reference, in `param_dtype`.

        Args:
            key: The same key gives the same values, whatever is wanted.
            wanted: Tells by its path whether a parameter is; the others are never computed.
            mesh: Devices over which the parameters are dealt, as in `from_pretrained`: each computes its own slices,
                with the values that one device computes, bit for bit.
        """

        def select(tree: Params) -> Params:
            return unflatten({path: leaf for path, leaf in flatten(tree).items() if wanted(path)})

        def made(key: Array) -> Params:
            inputs: Any = {name: jnp.zeros(value.shape, value.dtype) for name, value in self.example_inputs().items()}
            return select(self.init(key, **inputs)["params"])

        how: dict[str, Any] = {}
        if mesh is not None:
            how["out_shardings"] = parallel.param_shardings(mesh, select(self.param_shapes()), self.params_prefix)
        params: Params = jax.jit(made, **how)(key)
        return params

    @nn.nowrap
    def param_shapes(self) -> Params:
        """Returns the parameter tree as shapes and dtypes; nothing is computed, and equal models are traced once."""
        types = {name: jnp.dtype(getattr(self, name)) for name in ("dtype", "param_dtype")}
        bare = self.clone(parent=None, name=None, config=self.config.without_extra(), **types)
        return unflatten(dict(_flat_shapes(bare)))

    @nn.nowrap
    def example_inputs(self) -> dict[str, np.ndarray]:
        """Returns the smallest valid inputs, by name: zeros that take no memory."""
        return example_inputs(self.config)


@functools.lru_cache(maxsize=64)
def _flat_shapes(model: PretrainedModel) -> tuple[tuple[str, Any], ...]:
    shapes = jax.eval_shape(model.init, jax.random.key(0), **model.example_inputs())["params"]
    return tuple(flatten(shapes).items())


class TwoTowerModel(PretrainedModel, TwoTowers):
    """A whole model: an AltCLIP or a CLIP."""

    params_prefix: ClassVar[str] = ""


class AltCLIPModel(TwoTowerModel):
    """AltCLIP. `model.apply({"params": params}, input_ids, pixel_values, attention_mask)`."""

    config_class: ClassVar[type[AltCLIPConfig]] = AltCLIPConfig

    config: AltCLIPConfig


class AltCLIPTextModel(PretrainedModel, TextTower):
    """AltCLIP's text tower. `model.apply({"params": params}, input_ids, attention_mask=mask)`."""

    config_class: ClassVar[type[AltCLIPTextConfig]] = AltCLIPTextConfig
    params_prefix: ClassVar[str] = "text_model/"


class AltCLIPVisionModel(PretrainedModel, VisionTower):
    """AltCLIP's image tower. `model.apply({"params": params}, pixel_values)`."""

    config_class: ClassVar[type[AltCLIPVisionConfig]] = AltCLIPVisionConfig
    params_prefix: ClassVar[str] = "vision_model/"


class CLIPModel(TwoTowerModel):
    """CLIP, the teacher. `model.apply({"params": params}, input_ids, pixel_values, attention_mask)`."""

    config_class: ClassVar[type[CLIPConfig]] = CLIPConfig
    rule_table: ClassVar[RuleTable] = CLIP

    config: CLIPConfig


class CLIPTextModel(PretrainedModel, CLIPTextTower):
    """CLIP's text tower. `model.apply({"params": params}, input_ids, attention_mask)`.

    It reads the checkpoints of CLIPModel, CLIPTextModel and CLIPTextModelWithProjection.
    """

    config_class: ClassVar[type[CLIPTextConfig]] = CLIPTextConfig
    rule_table: ClassVar[RuleTable] = CLIP
    params_prefix: ClassVar[str] = "text_model/"


class CLIPTextModelWithProjection(PretrainedModel, CLIPTextTowerWithProjection):
    """CLIP's text tower and `text_projection`. `model.apply({"params": params}, input_ids, attention_mask)`.

    It reads the checkpoints of CLIPModel and CLIPTextModelWithProjection.
    """

    config_class: ClassVar[type[CLIPTextConfig]] = CLIPTextConfig
    rule_table: ClassVar[RuleTable] = CLIP
    params_prefix: ClassVar[str] = ""


class CLIPVisionModel(PretrainedModel, VisionTower):
    """CLIP's image tower, the same network. `model.apply({"params": params}, pixel_values)`."""

    config_class: ClassVar[type[CLIPVisionConfig]] = CLIPVisionConfig
    rule_table: ClassVar[RuleTable] = CLIP
    params_prefix: ClassVar[str] = "vision_model/"

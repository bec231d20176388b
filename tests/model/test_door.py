"""Layers are those of Flax, whatever form the parameters are stored in: interceptors, LoRA and precision work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from altclip_jax.model.stacked import stack_layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Transposed:
    """A kernel as a file has it: (out, in)."""

    array: jax.Array

    def __jax_array__(self):
        return self.array.T


def transposed(params):
    def change(path, leaf):
        return Transposed(leaf.T) if path[-1].key == "kernel" and leaf.ndim == 2 else leaf

    return jax.tree_util.tree_map_with_path(change, params)


FORMS = {
    "floats": lambda model, params: params,
    "halves": lambda model, params: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params),
    "int8": lambda model, params: model.quantize_params(params, "int8"),
    "transposed": lambda model, params: transposed(params),
}
DENSE = {
    *(
        f"{tower}/layer_{layer}/{name}"
        for tower in ("text_model", "vision_model")
        for layer in range(2)
        for name in ("attention/query", "attention/key", "attention/value", "attention/out", "mlp/up", "mlp/down")
    ),
    "text_model/transformation",
    "text_projection",
    "visual_projection",
}


@pytest.fixture(params=FORMS)
def stored(request, model, params):
    return FORMS[request.param](model, params)


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_an_interceptor_sees_every_layer_of_flax_once(model, stored, batch):
    seen = []

    def note(next_function, args, kwargs, context):
        if context.method_name == "__call__":
            seen.append((type(context.module), "/".join(context.module.path)))
            if isinstance(context.module, nn.Dense):
                assert isinstance(context.module.variables["params"]["kernel"], jax.Array)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note):
        model.apply({"params": stored}, **batch)
    assert len(seen) == len(set(seen))
    assert {path for kind, path in seen if kind is nn.Dense} == DENSE
    assert sum(kind is nn.LayerNorm for kind, _ in seen) == 2 * 2 * 2 + 2 + 2
    assert {path for kind, path in seen if issubclass(kind, nn.Embed)} == {
        f"text_model/{name}_embedding" for name in ("token", "position", "token_type")
    }


def test_lora_by_an_interceptor_is_the_kernel_and_the_product(model, params, batch):
    rng = np.random.default_rng(0)
    pairs, merged = {}, jax.tree.map(lambda leaf: leaf, params)
    for path in DENSE:
        *parents, name = path.split("/")
        node = merged
        for parent in parents:
            node = node[parent]
        kernel = node[name]["kernel"]
        pairs[path] = [
            jnp.float32(0.1 * rng.standard_normal(shape)) for shape in ((len(kernel), 2), (2, len(kernel.T)))
        ]
        node[name]["kernel"] = kernel + pairs[path][0] @ pairs[path][1]

    def add(next_function, args, kwargs, context):
        out = next_function(*args, **kwargs)
        if not isinstance(context.module, nn.Dense) or context.method_name != "__call__":
            return out
        down, up = pairs["/".join(context.module.path)]
        return out + args[0] @ down @ up

    with nn.intercept_methods(add):
        found = jax.jit(model.apply)({"params": params}, **batch).logits_per_text
    expected = model.apply({"params": merged}, **batch).logits_per_text
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(found - model.apply({"params": params}, **batch).logits_per_text).max() > 1e-3


def precisions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from precisions(inner)


def test_precision_reaches_every_product(model, params, batch):
    with jax.default_matmul_precision(None):
        for precision in (None, jax.lax.Precision.HIGH):
            apply = model.clone(precision=precision).apply
            found = list(precisions(jax.make_jaxpr(apply)({"params": params}, **batch).jaxpr))
            highest = [wanted for wanted in found if wanted == (jax.lax.Precision.HIGHEST,) * 2]
            assert len(highest) == 1  # the scores of pictures and texts, whatever is asked for
            rest = {wanted for wanted in found if wanted not in highest}
            assert rest == {None if precision is None else (precision,) * 2}
            assert len(found) == 1 + len(DENSE) + 2 * 2 * 2 + 1  # attention has two, the patches one


def test_transposed_leaves_give_the_same_and_learn_the_same(model, params, batch):
    stored = transposed(params)
    same(model.apply({"params": stored}, **batch), model.apply({"params": params}, **batch))
    (stack,) = stack_layers(params)
    (stored_stack,) = stack_layers(stored)
    assert isinstance(stored_stack["text_model"]["layers"]["mlp"]["up"]["kernel"], Transposed)
    same(model.apply({"params": stored_stack}, **batch), model.apply({"params": stack}, **batch))

    def gradient(params, remat):
        loss = lambda params: model.clone(remat=remat).apply({"params": params}, **batch, return_loss=True).loss  # noqa: E731
        found = jax.jit(jax.grad(loss))(params)
        return jax.tree.map(jnp.asarray, found, is_leaf=lambda leaf: isinstance(leaf, Transposed))

    for remat in (False, True, "dots"):
        ours, theirs = gradient(stored, remat), gradient(params, remat)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), ours, theirs)


def test_outputs_inside_can_be_captured(model, stored, batch):
    _, state = model.apply({"params": stored}, **batch, capture_intermediates=True, mutable=["intermediates"])
    up = state["intermediates"]["text_model"]["layer_1"]["mlp"]["up"]["__call__"][0]
    assert up.shape == (8, 7, 20)

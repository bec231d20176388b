"""The tables of the families of checkpoints that are read and written: AltCLIP, CLIP, and XLM-RoBERTa.

A student takes its image tower and projections from a CLIP and its text tower from an XLM-RoBERTa, so the three tables
lead to the same paths wherever the parts are the same.
"""

from __future__ import annotations

from altclip_jax.weights.rules import Rule, RuleTable, linear_rules, norm_rules


def _pre_norm_layers(name: str, path: str) -> list[Rule]:
    """Returns the rules of the layers of CLIP's towers."""
    name, path = f"{name}.encoder.layers.{{i}}", f"{path}/layer_{{i}}"
    return [
        *norm_rules(f"{name}.layer_norm1", f"{path}/attention_norm"),
        *linear_rules(f"{name}.self_attn.q_proj", f"{path}/attention/query"),
        *linear_rules(f"{name}.self_attn.k_proj", f"{path}/attention/key"),
        *linear_rules(f"{name}.self_attn.v_proj", f"{path}/attention/value"),
        *linear_rules(f"{name}.self_attn.out_proj", f"{path}/attention/out"),
        *norm_rules(f"{name}.layer_norm2", f"{path}/mlp_norm"),
        *linear_rules(f"{name}.mlp.fc1", f"{path}/mlp/up"),
        *linear_rules(f"{name}.mlp.fc2", f"{path}/mlp/down"),
    ]


def _roberta(name: str, path: str) -> list[Rule]:
    """Returns the rules of XLM-RoBERTa's embeddings and layers."""
    embeddings, layer, layer_path = f"{name}.embeddings", f"{name}.encoder.layer.{{i}}", f"{path}layer_{{i}}"
    return [
        Rule(f"{embeddings}.word_embeddings.weight", f"{path}token_embedding/embedding", "same"),
        Rule(f"{embeddings}.position_embeddings.weight", f"{path}position_embedding/embedding", "same"),
        Rule(f"{embeddings}.token_type_embeddings.weight", f"{path}token_type_embedding/embedding", "same"),
        *norm_rules(f"{embeddings}.LayerNorm", f"{path}embedding_norm"),
        *linear_rules(f"{layer}.attention.self.query", f"{layer_path}/attention/query"),
        *linear_rules(f"{layer}.attention.self.key", f"{layer_path}/attention/key"),
        *linear_rules(f"{layer}.attention.self.value", f"{layer_path}/attention/value"),
        Rule(
            f"{layer}.attention.self.distance_embedding.weight",
            f"{layer_path}/attention/distance_embedding/embedding",
            "same",
        ),
        *linear_rules(f"{layer}.attention.output.dense", f"{layer_path}/attention/out"),
        *norm_rules(f"{layer}.attention.output.LayerNorm", f"{layer_path}/attention_norm"),
        *linear_rules(f"{layer}.intermediate.dense", f"{layer_path}/mlp/up"),
        *linear_rules(f"{layer}.output.dense", f"{layer_path}/mlp/down"),
        *norm_rules(f"{layer}.output.LayerNorm", f"{layer_path}/mlp_norm"),
    ]


_VISION = (
    Rule("vision_model.embeddings.class_embedding", "vision_model/class_embedding", "same"),
    Rule("vision_model.embeddings.patch_embedding.weight", "vision_model/patch_embedding/kernel", "patches"),
    Rule("vision_model.embeddings.position_embedding.weight", "vision_model/position_embedding/embedding", "same"),
    *norm_rules("vision_model.pre_layrnorm", "vision_model/pre_norm"),
    *_pre_norm_layers("vision_model", "vision_model"),
    *norm_rules("vision_model.post_layernorm", "vision_model/post_norm"),
)
_HEADS = (
    Rule("logit_scale", "logit_scale", "same"),
    Rule("text_projection.weight", "text_projection/kernel", "linear"),
    Rule("visual_projection.weight", "visual_projection/kernel", "linear"),
)
# torch's old names of the parameters of a LayerNorm
_OLD_NORMS = ((r"(LayerNorm|pre_LN)\.gamma$", r"\1.weight"), (r"(LayerNorm|pre_LN)\.beta$", r"\1.bias"))

ALTCLIP = RuleTable(
    rules=(
        *_HEADS,
        *_roberta("text_model.roberta", "text_model/"),
        *norm_rules("text_model.pre_LN", "text_model/final_norm"),
        *linear_rules("text_model.transformation", "text_model/transformation"),
        *_VISION,
    ),
    spellings=(  # towers saved alone, and transformers 5
        (r"^(roberta|transformation|pre_LN)\.", r"text_model.\1."),
        (r"^(embeddings\.(class|patch|position)_embedding\b|pre_layrnorm\.|post_layernorm\.)", r"vision_model.\1"),
        (r"^encoder\.layers\.", "vision_model.encoder.layers."),
        (r"^vision_model\.encoder\.layer\.", "vision_model.encoder.layers."),  # transformers 5 writes full models so
        (r"^text_model\.(embeddings|encoder|pooler)\.", r"text_model.roberta.\1."),
        (r"^(text_model\.roberta\.encoder)\.layers\.", r"\1.layer."),
        *_OLD_NORMS,
    ),
    # buffers of older versions, and XLM-R's pooler, which AltCLIP does not use
    ignored=(
        r"text_model\.roberta\.embeddings\.(position_ids|token_type_ids)"
        r"|vision_model\.embeddings\.position_ids"
        r"|text_model\.roberta\.pooler\.dense\.(weight|bias)"
    ),
    dropped={"text_model/": "text_model."},
)

CLIP = RuleTable(
    rules=(
        *_HEADS,
        Rule("text_model.embeddings.token_embedding.weight", "text_model/token_embedding/embedding", "same"),
        Rule("text_model.embeddings.position_embedding.weight", "text_model/position_embedding/embedding", "same"),
        *_pre_norm_layers("text_model", "text_model"),
        *norm_rules("text_model.final_layer_norm", "text_model/final_norm"),
        *_VISION,
    ),
    spellings=(),
    ignored=r"(text|vision)_model\.embeddings\.position_ids",  # buffers of older versions
)

XLM_ROBERTA = RuleTable(
    rules=tuple(_roberta("roberta", "text_model/")),
    spellings=(
        (r"^(embeddings|encoder|pooler)\.", r"roberta.\1."),  # XLMRobertaModel's; with a head they are as in `rules`
        *_OLD_NORMS,
    ),
    # buffers of older versions, and the two heads
    ignored=r"roberta\.embeddings\.(position_ids|token_type_ids)|roberta\.pooler\.dense\.(weight|bias)|lm_head\..+",
)

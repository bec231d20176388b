"""What `altclip init` does: make a student of an XLM-RoBERTa and a CLIP, or a model from scratch, to train from.

Source: Chen et al. 2022, arXiv 2211.06679, section 3: the student's text tower starts as XLM-R, everything else is the
teacher's, and the pooled states of the two text towers are equally wide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import Array

from altclip_jax.config import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    Config,
    XLMRobertaConfig,
    is_flagai,
)
from altclip_jax.files import hub
from altclip_jax.files.json_file import read_json_object
from altclip_jax.files.ownership import containing
from altclip_jax.pretrained import AltCLIPModel, CLIPModel, TwoTowerModel
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.processing.processor import (
    IMAGE_PROCESSOR,
    TOKENIZER,
    AltCLIPProcessor,
    picture_problems,
    tokenizer_problems,
)
from altclip_jax.processing.tokenizer import load_tokenizer
from altclip_jax.quantization.files import refuse_quantized
from altclip_jax.weights.convert import flatten, params_from_tensors, unflatten
from altclip_jax.weights.families import CLIP, XLM_ROBERTA
from altclip_jax.weights.folder import CONFIG, WEIGHTS, save
from altclip_jax.weights.readers import open_checkpoint
from altclip_jax.weights.rules import RuleTable

Source = str | os.PathLike[str]

# What decides the shapes of a tower or what it computes: all of it must agree where a tower is taken over.
_TEXT_FIELDS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act max_position_embeddings"
    " type_vocab_size layer_norm_eps pad_token_id position_embedding_type"
)
_VISION_FIELDS = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act num_channels image_size patch_size"
    " layer_norm_eps"
)


class Start(NamedTuple):
    """A checkpoint that training can start from, and where its parts came from."""

    target: str
    model_type: str
    parameters: int
    taken: dict[str, int]  # number of tensors by the source that they were taken from
    initialised: tuple[str, ...]  # paths of the tensors that no source has
    tokenizer: str  # where it is from
    image_processor: str


def start(
    target: Source,
    *,
    text: Source | None = None,
    clip: Source | None = None,
    config: Source | None = None,
    tokenizer: Source | None = None,
    image_processor: Source | None = None,
    seed: int = 0,
    local_files_only: bool = False,
) -> Start:
    """Writes a checkpoint to train from, with the files of its processor, all as transformers reads them.

    Of an AltCLIP, what neither `text` nor `clip` has is initialised. With `config` alone everything is, and the model
    may also be a CLIP. The tokenizer keeps its limit, or gets the text tower's where that is lower.

    Args:
        target: The new folder.
        text: An XLM-RoBERTa checkpoint for the text tower, of XLMRobertaModel or XLMRobertaForMaskedLM.
        clip: A CLIP checkpoint for the image tower, both projections and the temperature.
        config: A config.json of an AltCLIP or a CLIP, or its folder; not needed where both others are given.
        tokenizer: Where the tokenizer is from; default `text`.
        image_processor: Where the image processor is from; default `clip`, else CLIP's at the model's image size.
        seed: Seed of the parameters that are initialised.
        local_files_only: Never use the network for a source that is a hub id.

    Raises:
        ValueError: sources, configuration and processor do not fit each other; all differences are named.
        CheckpointError: a source's weights do not fit its own configuration, or a file is damaged.
        OSError: there is no such folder, file or repository, or the target cannot be written.
    """
    sources = {"text": text, "clip": clip, "tokenizer": tokenizer, "image_processor": image_processor}
    _keep_apart(target, {**sources, "config": config})
    once = dict.fromkeys(source for source in sources.values() if source)
    found = {source: hub.find(source, local_files_only=local_files_only) for source in once}

    def fetch(source: Source | None, *wanted: hub.Files) -> Path | None:
        return found[source].fetch(*wanted) if source else None

    text_folder, clip_folder = fetch(text, CONFIG, WEIGHTS), fetch(clip, CONFIG, WEIGHTS)
    text_config = None if text_folder is None else XLMRobertaConfig.from_json(text_folder)
    clip_config = None if clip_folder is None else CLIPConfig.from_json(clip_folder)
    made = _compose(text_config, clip_config) if config is None else _read_config(Path(config))
    processor = _processor(made, fetch(tokenizer or text, TOKENIZER), fetch(image_processor or clip, IMAGE_PROCESSOR))
    problems = [
        *_source_problems(made, text_config, clip_config),
        *tokenizer_problems(made.text_config, processor.tokenizer),
        *picture_problems(made.vision_config, processor.image_processor),
    ]
    if problems:
        raise ValueError(f"{target} cannot be made of these:\n  - " + "\n  - ".join(problems))
    processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, made.text_config.max_tokens)

    model: TwoTowerModel = AltCLIPModel(made) if isinstance(made, AltCLIPConfig) else CLIPModel(made)
    shapes = flatten(model.param_shapes())
    from_text = {} if text_folder is None else _take(text_folder, _text_tower(shapes), XLM_ROBERTA)
    from_clip = {} if clip_folder is None else _take(clip_folder, _all_but_text_tower(shapes), CLIP)
    fresh = tuple(path for path in shapes if path not in from_text and path not in from_clip)
    initialised = flatten(model.init_params(jax.random.key(seed), frozenset(fresh).__contains__))
    params = {**from_text, **from_clip, **initialised}
    save(model, target, unflatten({path: params[path] for path in shapes}), processor=processor.files())
    return Start(
        target=str(target),
        model_type=made.model_type,
        parameters=sum(leaf.size for leaf in params.values()),
        taken={str(source): len(part) for source, part in ((text, from_text), (clip, from_clip)) if part},
        initialised=fresh,
        tokenizer=str(tokenizer or text),
        image_processor=str(image_processor or clip or "CLIP's, at the model's image size"),
    )


def _keep_apart(target: Source, sources: Mapping[str, Source | None]) -> None:
    for name, source in sources.items():
        if source is None or not Path(source).exists():  # a hub id
            continue
        folder = Path(source).parent if Path(source).is_file() else Path(source)
        if containing(Path(target))(folder):
            raise ValueError(f"{target} is where {name} is read from: name another folder for the new checkpoint.")


def _compose(text: XLMRobertaConfig | None, clip: CLIPConfig | None) -> AltCLIPConfig:
    """The configuration of a student that has the towers of its sources."""
    if text is None or clip is None:
        lacking = " and ".join(name for name, value in (("text", text), ("clip", clip)) if value is None)
        raise ValueError(f"Without a {lacking} checkpoint the model must be described: pass a config, too.")
    common = {name: getattr(text, name) for name in XLMRobertaConfig.field_names()}
    return AltCLIPConfig(
        text_config=AltCLIPTextConfig(
            **common, initializer_factor=text.initializer_range, project_dim=clip.text_config.hidden_size
        ),
        vision_config=AltCLIPVisionConfig(
            **{name: getattr(clip.vision_config, name) for name in AltCLIPVisionConfig.field_names()}
        ),
        projection_dim=clip.projection_dim,
        logit_scale_init_value=clip.logit_scale_init_value,
    )


def _read_config(path: Path) -> AltCLIPConfig | CLIPConfig:
    values = read_json_object(path / "config.json" if path.is_dir() else path)
    if values.get("model_type") == CLIPConfig.model_type and not is_flagai(values):
        return CLIPConfig.from_json(path)
    return AltCLIPConfig.from_json(path)


def _processor(
    config: AltCLIPConfig | CLIPConfig, tokenizer: Path | None, image_processor: Path | None
) -> AltCLIPProcessor:
    if tokenizer is None:
        raise ValueError("There is no tokenizer: without a text checkpoint, name a folder or hub id that has one.")
    texts = load_tokenizer(tokenizer)
    size = config.vision_config.image_size
    pictures = AltCLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    if image_processor is not None:
        pictures = AltCLIPImageProcessor.from_pretrained(image_processor)
    return AltCLIPProcessor(pictures, texts)


def _source_problems(
    config: AltCLIPConfig | CLIPConfig, text: XLMRobertaConfig | None, clip: CLIPConfig | None
) -> Iterator[str]:
    if isinstance(config, CLIPConfig):
        if text is not None or clip is not None:
            yield "the config is that of a CLIP, which is made from scratch: text and clip are for an AltCLIP"
        return
    if text is not None:
        yield from _differences("text_config", config.text_config, "the text checkpoint", text, _TEXT_FIELDS)
    if clip is not None:
        yield from _differences("vision_config", config.vision_config, "clip", clip.vision_config, _VISION_FIELDS)
        yield from _differences("config", config, "clip", clip, "projection_dim")
        wide, teacher = config.text_config.project_dim, clip.text_config.hidden_size
        if wide != teacher:
            yield (
                f"text_config.project_dim={wide} and the text tower of clip has hidden_size={teacher}: they must be"
                " equal, since the student learns the teacher's pooled states and takes over its text_projection"
            )


def _differences(name: str, ours: Config, source: str, theirs: Config, fields: str) -> Iterator[str]:
    for field in fields.split():
        mine, other = getattr(ours, field), getattr(theirs, field)
        if mine != other:
            yield f"{name}.{field}={mine!r} and {source} has {field}={other!r}"


def _text_tower(shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {path: leaf for path, leaf in shapes.items() if path.startswith("text_model/")}


def _all_but_text_tower(shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {path: leaf for path, leaf in shapes.items() if not path.startswith("text_model/")}


def _take(folder: Path, shapes: Mapping[str, Any], table: RuleTable) -> dict[str, Array]:
    """Reads those of the parameters that checkpoints of the table's family have."""
    refuse_quantized(folder, "a checkpoint to train from")
    expected = unflatten({path: leaf for path, leaf in shapes.items() if table.name_of(path) is not None})
    with open_checkpoint(folder) as checkpoint:
        params = params_from_tensors(
            checkpoint.infos, checkpoint.read, expected, table=table, subject=f"the checkpoint {folder}"
        )
    return flatten(params)

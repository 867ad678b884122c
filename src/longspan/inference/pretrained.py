"""A trained model as a folder that other programs read: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from longspan.config.errors import CheckpointError
from longspan.config.from_checkpoint import check_checkpoint_config, check_weights
from longspan.inference.model_card import model_card
from longspan.inference.tokenizer_files import write_tokenizer
from longspan.models import PretrainedTransformer
from longspan.models.pretrained_network import check_content, config_content
from longspan.patterns import PatternError, parse_pattern
from longspan.tasks import LanguageModelling, MaskedModelling

if TYPE_CHECKING:
    from longspan.inference.trained_model import TrainedModel

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, VOCABULARIES_FILE = "config.json", "model.safetensors", "README.md", "vocabularies.json"
MODEL_TYPE = "longspan"
LARGEST_CONFIG, LARGEST_VOCABULARIES = 1 << 22, 1 << 28  # bytes


def save(model: TrainedModel, folder: Path) -> Path:
    """Writes config and weights, a tokenizer and a model card; weights that are one tensor under two names are written once."""
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[Any, str] = {}
    weights: dict[str, Tensor] = {}
    for name, weight in model.task.state_dict().items():
        if isinstance(weight, Tensor) and held.setdefault(_place(weight), name) == name:
            weights[name] = weight.detach().cpu().contiguous()
    task, config = type(model.task).__name__, model.config
    backbone = model.model.backbone
    if isinstance(backbone, PretrainedTransformer):
        config = {**config, "model": {**config["model"], "network": config_content(backbone.network)}}
    content = {
        "model_type": MODEL_TYPE,
        "architectures": [f"Longspan{ARCHITECTURES[task]}" if task in ARCHITECTURES else task],
        "vocab_size": model.model.vocab_size,
        "max_position_embeddings": model.model.max_length,
        "hidden_size": model.model.width,
        "longspan_config": config,
        "longspan_facts": model.facts,
    }
    if labels := model.classes or model.facts.get("target_names"):
        content["id2label"] = dict(enumerate(labels))
        content["label2id"] = {name: number for number, name in enumerate(labels)}
    if task == "SequenceRegression":
        content["problem_type"] = "regression"
    if task == "SequenceToSequence":
        content["is_encoder_decoder"] = True
    if getattr(model.task, "multi_label", False):
        content["problem_type"] = "multi_label_classification"
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if model.vocabularies:
        (folder / VOCABULARIES_FILE).write_text(json.dumps(model.vocabularies) + "\n", encoding="utf-8")
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    begins = isinstance(model.task, LanguageModelling)
    write_tokenizer(model.vocabulary, folder, max_length=model.model.max_length, begins=begins)
    card = model_card(model.record, model.config, task, sum(p.numel() for p in model.model.parameters()))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return folder


def save_network(model: TrainedModel, folder: Path) -> Path:
    """See `TrainedModel.save_transformers`."""
    backbone, task = model.model.backbone, type(model.task).__name__
    if not isinstance(backbone, PretrainedTransformer):
        raise TypeError("save_transformers: this model is of this project's own blocks; save_pretrained writes it")
    if not isinstance(model.task, (LanguageModelling, MaskedModelling)):
        raise TypeError(f"save_transformers: transformers does not know the head of {task}; save_pretrained writes it")
    backbone.network.save_pretrained(folder)
    begins = isinstance(model.task, LanguageModelling)
    write_tokenizer(model.vocabulary, folder, max_length=backbone.max_length, begins=begins)
    parameters = sum(p.numel() for p in backbone.network.parameters())
    card = model_card(model.record, model.config, task, parameters, use=_loading(backbone, begins))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return folder


def _loading(backbone: PretrainedTransformer, causal: bool) -> list[str]:
    """The lines that load a network; with its attention where all layers have one pattern, all its own."""
    auto = "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM"
    patterns = {repr(getattr(module, "pattern", None)) for module in backbone.attention_modules()}
    (pattern,) = patterns if len(patterns) == 1 else (None,)
    if pattern is None or not _is_expression(pattern):
        return [f"from transformers import {auto}", f'model = {auto}.from_pretrained("FOLDER")']
    return [
        f"from transformers import {auto}",
        "from longspan.integrations.huggingface import register",
        "register()",
        f'model = {auto}.from_pretrained("FOLDER", attn_implementation="longspan:{pattern}")',
    ]


def _is_expression(text: str) -> bool:
    try:
        parse_pattern(text)
    except PatternError:
        return False
    return True


ARCHITECTURES = {
    "LanguageModelling": "ForCausalLM",
    "MaskedModelling": "ForMaskedLM",
    "SequenceClassification": "ForSequenceClassification",
    "TokenLabelling": "ForTokenClassification",
    "SequenceRegression": "ForSequenceClassification",
    "SequenceToSequence": "ForSeq2SeqLM",
}


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Any]:
    """(config, facts, weights, vocabularies) of a folder, checked as those of a checkpoint are.

    Raises:
        CheckpointError: a file is missing or malformed, or the config is not one that may be built.
    """
    where = f"checkpoint={folder}"
    content = _json(folder / CONFIG_FILE, LARGEST_CONFIG, where)
    if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{where}: {CONFIG_FILE} describes no model of this project; give a folder of save_pretrained")
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{where} has no {WEIGHTS_FILE}; give a folder of save_pretrained")
    try:
        weights: dict[str, Any] = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{where}: {WEIGHTS_FILE} cannot be read ({error})") from None
    config, facts = check_checkpoint_config(content.get("longspan_config"), where), content.get("longspan_facts")
    check_weights(config, facts, weights, where)
    if config["model"].get("network") is not None:
        check_content(config["model"]["network"], weights, where)
    kept = folder / VOCABULARIES_FILE
    vocabularies = _json(kept, LARGEST_VOCABULARIES, where) if kept.is_file() else None
    return config, dict(facts or {}), weights, vocabularies


def _json(file: Path, largest: int, where: str) -> Any:
    if file.stat().st_size > largest:
        raise CheckpointError(f"{where}: {file.name} is larger than any of this project")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: {file.name} is no JSON ({error})") from None


def with_shared(weights: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under each of their names: those that are one tensor in the model (`own`, its state) were stored once, such as a
    head that is tied to an embedding."""
    stored = {_place(own[name]): weights[name] for name in weights if isinstance(own.get(name), Tensor)}
    shared = {
        name: stored[_place(one)]
        for name, one in own.items()
        if name not in weights and isinstance(one, Tensor) and _place(one) in stored
    }
    return {**weights, **shared}


def _place(weight: Tensor) -> tuple[int, torch.Size]:
    return weight.data_ptr(), weight.shape

"""Loads a network of transformers: from a folder, from the Hub, or from what a saved model keeps of its config."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from longspan.config.errors import CallError, CheckpointError, ConfigError, wrong_value

SPECIALS = 4  # padding, start, mask and end: a vocabulary adds those that its tokenizer lacks, most often the mask


def loaded_network(path: str, *, causal: bool, pretrained: bool, content: Mapping[str, Any] | None, implementation: str) -> Any:
    """A model of an Auto class in float32, in training mode.

    Args:
        path: a folder that `save_pretrained` wrote, or a name on the Hub.
        causal: takes the class that predicts next tokens, where the network has one.
        pretrained: False leaves weights at random.
        content: a `config.json`'s content, in place of the folder's; weights are then at random.
        implementation: name of the registered attention.

    Raises:
        ConfigError: there is no such model, transformers cannot load it, or it is an encoder-decoder.
    """
    import transformers

    there = Path(path).expanduser()
    source = str(there) if there.is_dir() else path
    known: dict[str, Any] = {"trust_remote_code": False}
    if content is None and not there.is_dir():
        if there.is_absolute():
            fix = "there is no such folder; put the model that the run began from there, or give the folder that it is in now"
            raise wrong_value("model.path", path, fix)
        from longspan.data.readers.hub import hub_reachable

        known["local_files_only"] = not hub_reachable()  # or transformers tries for half a minute
    try:
        config = transformers.AutoConfig.from_pretrained(source, **known) if content is None else _config_of(content)
        encoders = [name for name in config.architectures or () if name.endswith("EncoderModel")]
        if encoders and getattr(config, "relative_attention_num_buckets", None) is not None:
            fix = f"{encoders[0]} adds a bias to each pair (relative_attention_num_buckets); choose another model"
            raise wrong_value("model.path", path, fix)
        if config.is_encoder_decoder:
            fix = f"{type(config).__name__.removesuffix('Config')} is an encoder-decoder; choose an encoder or a decoder"
            raise wrong_value("model.path", path, fix)
        masked = type(config) in transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
        language = type(config) in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
        auto: Any = transformers.AutoModel
        if language and (causal or not masked):
            auto = transformers.AutoModelForCausalLM
        elif masked:
            auto = transformers.AutoModelForMaskedLM
        settings = {"attn_implementation": implementation, "dtype": torch.float32}
        if pretrained and content is None:
            network = auto.from_pretrained(source, **settings, **known)
        else:
            network = auto.from_config(config, **settings, trust_remote_code=False)
            _tie(network)
    except ConfigError:
        raise
    except CallError as error:  # of our own attention, which `register` lets refuse models as they are made
        reason = str(error).partition("this model: ")[2].partition(";")[0] or str(error)
        raise wrong_value("model.path", path, f"{reason}; choose another model") from error
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if isinstance(error, KeyError):
            reason = f"its code knows no {reason}: it computes its attention itself"
        missing = "" if there.is_dir() else f"there is no such folder in {Path.cwd()}, and "
        fix = f"{missing}transformers cannot load it ({reason}); give a folder with config.json and model.safetensors"
        raise wrong_value("model.path", path, fix) from error
    return network.train()  # transformers hands it out for evaluation, and a trainer leaves modes as they are


def looks_up_attention(model: Any) -> bool:
    """Whether a model of transformers takes its attention from the table of implementations. One whose code has its own, such
    as BLOOM's, would attend as before in silence."""
    from transformers import PreTrainedModel

    file = type(model).__module__
    if file.startswith("longspan."):
        return False  # the attention is that of its run
    if not file.startswith("transformers.models.") or model.main_input_name != "input_ids":
        return True
    held = vars(sys.modules[file])

    def of_another_file(one: Any) -> bool:
        return (
            isinstance(one, type)
            and issubclass(one, PreTrainedModel)
            and one.__module__ != file
            and one.__module__.startswith("transformers.models.")
        )

    return "ALL_ATTENTION_FUNCTIONS" in held or any(
        name.startswith("AutoModel") or of_another_file(one) for name, one in held.items()
    )


def _tie(network: Any) -> None:
    """Makes weights that are one, one: transformers leaves that out while it loads a model that this one is a part of."""
    for target, source in network.get_expanded_tied_weights_keys(all_submodels=True).items():
        owner, _, name = target.rpartition(".")
        setattr(network.get_submodule(owner), name, network.get_parameter_or_buffer(source))


def config_content(network: Any) -> dict[str, Any]:
    """The content of a network's `config.json`, as plain values: enough to build it again, weights at random."""
    return json.loads(network.config.to_json_string(use_diff=False))


def check_content(content: Any, weights: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError where a config that came with weights describes a network larger than they are."""
    kind = content.get("model_type") if isinstance(content, Mapping) else None
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(f"{where}: needs transformers 5: pip install 'longspan[huggingface]'") from error
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise CheckpointError(f"{where} names a network of type {kind!r:.60}, which transformers does not have")
    layers = {int(found[1]) for name in weights if (found := re.search(r"\.body\.\D*\.(\d{1,9})\.", name))}
    held = sum(weight.numel() for weight in weights.values())
    try:
        config = _config_of(content)
        stated = config.num_hidden_layers
        if not isinstance(stated, int) or stated > len(layers):
            raise CheckpointError(f"{where} says that its network has {stated} layers, and its weights have {len(layers)}")
        with torch.device("meta"):
            described = sum(p.numel() for p in transformers.AutoModel.from_config(config, trust_remote_code=False).parameters())
    except CheckpointError:
        raise
    except Exception as error:  # whatever a class of transformers raises at values that it cannot take
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{where} describes no network that transformers can build: {said[:200]}") from None
    if described > held:
        raise CheckpointError(
            f"{where} describes a network of {described:,} numbers, and its weights have {held:,}: they do not belong together"
        )


def _config_of(content: Mapping[str, Any]) -> Any:
    import transformers

    return transformers.CONFIG_MAPPING[str(content["model_type"])].from_dict(dict(content))


@torch.no_grad()
def add_embeddings(network: Any, known: int, wanted: int) -> None:
    """Rows for tokens that a checkpoint does not know, each the mean of the known: such a token is as unlikely as any."""
    network.resize_token_embeddings(wanted, mean_resizing=False)
    for layer in (network.get_input_embeddings(), network.get_output_embeddings()):
        for name in ("weight", "bias"):
            rows = getattr(layer, name, None)
            if rows is not None and len(rows) == wanted:  # tied: written twice alike
                rows[known:] = rows[:known].mean(0)

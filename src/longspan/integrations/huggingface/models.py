"""Trained models as transformers' own classes: `AutoModel...from_pretrained(folder)`, pipelines, `generate`.

The folder is what `longspan.load(checkpoint).save_pretrained(folder)` wrote; `register()` makes the classes known.

Legend: B batch, T tokens, K classes, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput, MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput

from longspan.config.errors import CallError
from longspan.config.from_checkpoint import check_checkpoint_config
from longspan.inference.pretrained import ARCHITECTURES, MODEL_TYPE
from longspan.tasks.language_modelling import next_tokens
from longspan.training.assemble import task_of


class LongspanConfig(PreTrainedConfig):
    """`longspan_config`: the run's config; `longspan_facts`: the facts of the data that its task was built with."""

    model_type = MODEL_TYPE

    def __init__(self, longspan_config: Any = None, longspan_facts: Any = None, **rest: Any) -> None:
        rest = {"use_cache": False, "tie_word_embeddings": True, **rest}
        super().__init__(**rest)
        self.longspan_config, self.longspan_facts = longspan_config or {}, longspan_facts or {}
        sizes = self.longspan_config.get("model", {})
        self.num_hidden_layers, self.num_attention_heads = sizes.get("layers", 0), sizes.get("heads", 0)


class LongspanModel(PreTrainedModel):
    """A backbone and a head of this project; use the class of its task, or transformers' Auto classes."""

    config_class = LongspanConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    # what a task keeps for its loss, such as weights of classes
    _keys_to_ignore_on_load_unexpected: Any = [r"^(?!model\.)"]  # noqa: RUF012  (transformers' own type differs by version)

    def __init__(self, config: LongspanConfig) -> None:
        super().__init__(config)
        self._check_task()
        saved = check_checkpoint_config(config.longspan_config, f"{type(self).__name__}: config.json")
        with torch.device("cpu"):  # transformers builds on a device without memory, where computed buffers would be lost
            self.model: Any = task_of(saved, dict(config.longspan_facts)).model  # type: ignore[attr-defined]
        self._tied_weights_keys = self._shared_names()
        saved_names = set(self.state_dict())
        self._computed = {name: one.clone() for name, one in self.named_buffers() if name not in saved_names}
        self.post_init()

    def _check_task(self) -> None:
        made, own = next(iter(self.config.architectures or ()), None), type(self).__name__
        if made != own and made in {f"Longspan{kind}" for kind in ARCHITECTURES.values()} and own.startswith("Longspan"):
            raise CallError(f"{own}: config.json describes a {made}; load it with Auto{made.replace('Longspan', 'Model', 1)}")

    def _shared_names(self) -> dict[str, str]:
        """The other names of each weight that has several, and the first: files hold it once."""
        first: dict[Any, str] = {}
        names = [(name, first.setdefault(weight, name)) for name, weight in self.named_parameters(remove_duplicate=False)]
        return {name: known for name, known in names if name != known}

    def initialize_weights(self) -> None:
        """Buffers that are computed get their values back, which transformers drops as it loads a file, and attention that
        makes something of its weights as they are loaded (learned, dsa) does it now. Weights are initialised where they are
        built."""
        for name, value in self._computed.items():
            self.get_buffer(name).copy_(value)
        self.model.load_state_dict(self.model.state_dict())

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.backbone.embedding

    def logits(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T] and a padding mask [B, T] of 1 and 0 -> what the head gives; padding may stand on either side."""
        if mask is None or bool(mask.all()):
            return self.model(tokens)
        lengths, first = mask.sum(1), mask.argmax(1)
        place = torch.arange(mask.shape[1], device=mask.device)
        if not bool((mask.bool() == ((place >= first[:, None]) & (place < (first + lengths)[:, None]))).all()):
            raise CallError(
                "attention_mask has holes: tokens of a sequence must stand together, padding on one side; to generate from "
                'prompts of several lengths, pad on the left (tokenizer.padding_side = "left")'
            )
        turned = (place + first[:, None]) % mask.shape[1]  # tokens first, padding after
        out = self.model(tokens.gather(1, turned), lengths=lengths)
        if out.dim() == 2:
            return out  # (B, K)
        back = (place - first[:, None]) % mask.shape[1]
        return out.gather(1, back[:, :, None].expand_as(out))  # (B, T, V) or (B, T, K)


class LongspanForCausalLM(LongspanModel, GenerationMixin):
    """Next tokens; `generate` works, each step over the whole text."""

    _is_stateful = True  # nothing can be taken back from a cache that is not there: assisted decoding is refused by its name

    def __init__(self, config: LongspanConfig) -> None:
        super().__init__(config)
        self.generation_config.use_cache = False  # transformers' caches hold keys of its own modules

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.model.head.projection

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """`labels` [B, T], -100 where none counts; they are the tokens themselves, shifted here."""
        logits = self.logits(input_ids, attention_mask)  # (B, T, V)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), next_tokens(labels).flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class LongspanForMaskedLM(LongspanModel):
    """Tokens that were hidden."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> MaskedLMOutput:
        logits = self.logits(input_ids, attention_mask)  # (B, T, V)
        loss = None if labels is None else F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class LongspanForSequenceClassification(LongspanModel):
    """One label, or several, a sequence."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        logits = self.logits(input_ids, attention_mask)  # (B, K)
        loss = None
        if labels is not None and labels.dim() == 2:
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        elif labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class LongspanForTokenClassification(LongspanModel):
    """A label a token."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> TokenClassifierOutput:
        logits = self.logits(input_ids, attention_mask)  # (B, T, K)
        loss = None if labels is None else F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)


def register_models() -> None:
    """Makes the classes known to transformers' Auto classes; calling it again changes nothing."""
    AutoConfig.register(MODEL_TYPE, LongspanConfig, exist_ok=True)
    for auto, model in (
        (AutoModelForCausalLM, LongspanForCausalLM),
        (AutoModelForMaskedLM, LongspanForMaskedLM),
        (AutoModelForSequenceClassification, LongspanForSequenceClassification),
        (AutoModelForTokenClassification, LongspanForTokenClassification),
    ):
        auto.register(LongspanConfig, model, exist_ok=True)

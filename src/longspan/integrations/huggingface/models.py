"""Trained models as transformers' own classes: `AutoModel...from_pretrained(folder)`, pipelines, `generate`.

The folder is what `longspan.load(checkpoint).save_pretrained(folder)` wrote; `register()` makes the classes known.

Legend: B batch, T tokens (Ts of a source, Tt of a target), C model width, K classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    MaskedLMOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from longspan.attention.decoding import as_in_evaluation
from longspan.config.errors import CallError
from longspan.config.from_checkpoint import check_checkpoint_config
from longspan.inference.pretrained import ARCHITECTURES, MODEL_TYPE
from longspan.models.search import Beam, search
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


class LongspanPreTrained(PreTrainedModel):
    """A backbone and a head of this project, which each class below reads for its task."""

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
        if own == "LongspanModel":
            return
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
        return self._of_unpadded(self.model, tokens, mask)

    def _of_unpadded(self, read: Callable[..., Tensor], tokens: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or bool(mask.all()):
            return read(tokens)
        turned, lengths, first = self._turned(tokens, mask)
        out = read(turned, lengths=lengths)
        if out.dim() == 2:
            return out  # (B, K)
        back = (torch.arange(mask.shape[1], device=mask.device) - first[:, None]) % mask.shape[1]
        return out.gather(1, back[:, :, None].expand_as(out))  # (B, T, V) or (B, T, K)

    @staticmethod
    def _turned(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of tokens with their padding at the end, their lengths [B], and where each began [B]."""
        lengths, first = mask.sum(1), mask.argmax(1)
        place = torch.arange(mask.shape[1], device=mask.device)
        if not bool((mask.bool() == ((place >= first[:, None]) & (place < (first + lengths)[:, None]))).all()):
            raise CallError(
                "attention_mask has holes: tokens of a sequence must stand together, padding on one side; to generate from "
                'prompts of several lengths, pad on the left (tokenizer.padding_side = "left")'
            )
        return tokens.gather(1, (place + first[:, None]) % mask.shape[1]), lengths, first


class LongspanModel(LongspanPreTrained):
    """The vectors of a model's last layer, whatever its task."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """`last_hidden_state` [B, T, C]; at padding it means nothing.

        Raises:
            CallError: an encoder-decoder, which reads a target too.
        """
        if self.config.is_encoder_decoder:
            raise CallError("LongspanModel: this is an encoder-decoder; load it with AutoModelForSeq2SeqLM")
        return BaseModelOutput(last_hidden_state=self._of_unpadded(self.model.backbone, input_ids, attention_mask))


class LongspanForCausalLM(LongspanPreTrained, GenerationMixin):
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


class LongspanForMaskedLM(LongspanPreTrained):
    """Tokens that were hidden."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> MaskedLMOutput:
        logits = self.logits(input_ids, attention_mask)  # (B, T, V)
        loss = None if labels is None else F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class LongspanForSequenceClassification(LongspanPreTrained):
    """One label, or several, a sequence; or numbers, in the units of the targets."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        logits = self.logits(input_ids, attention_mask)  # (B, K)
        loss = None
        if "target_std" in self.config.longspan_facts:
            mean, std = (logits.new_tensor(self.config.longspan_facts[f"target_{name}"]) for name in ("mean", "std"))
            if labels is not None:  # as the task has it
                loss = F.mse_loss(logits.float(), (labels.view_as(logits) - mean) / std)
            logits = logits * std + mean
        elif labels is not None and labels.dim() == 2:
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        elif labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class LongspanForTokenClassification(LongspanPreTrained):
    """A label a token."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> TokenClassifierOutput:
        logits = self.logits(input_ids, attention_mask)  # (B, T, K)
        loss = None if labels is None else F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)


class LongspanForSeq2SeqLM(LongspanPreTrained):
    """A target for each source, by this project's own search."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        """`logits` [B, Tt, V] of target inputs [B, Tt], which begin with <bos>; those of `labels` [B, Tt] (-100: none) are
        these one later.

        Raises:
            CallError: neither is given.
        """
        facts = self.config.longspan_facts
        if decoder_input_ids is None:
            if labels is None:
                raise CallError("LongspanForSeq2SeqLM: give decoder_input_ids or labels; generate(input_ids) finds a target")
            began = torch.full_like(labels[:, :1], facts["bos_id"])
            decoder_input_ids = torch.cat([began, labels[:, :-1].masked_fill(labels[:, :-1] < 0, facts["eos_id"])], 1)
        source, lengths = self._source(input_ids, attention_mask)
        logits = self.model.head(self.model.backbone(source, decoder_input_ids, lengths=lengths))  # (B, Tt, V)
        loss = None if labels is None else F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return Seq2SeqLMOutput(loss=loss, logits=logits)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        do_sample: bool = False,
    ) -> Tensor:
        """Targets [B, Tt] as token ids, each with <bos> before it and <eos> after it, filled up with <eos>. What is not given
        is what the run had.

        Raises:
            CallError: `do_sample`, since targets are searched for.
        """
        if do_sample:
            raise CallError(
                "LongspanForSeq2SeqLM.generate: targets are searched for, greedily or by num_beams; leave out do_sample"
            )
        facts, task = self.config.longspan_facts, self.config.longspan_config.get("task", {})
        beam = Beam(
            num_beams if num_beams is not None else task.get("beam", 1),
            length_penalty if length_penalty is not None else task.get("length_penalty", 1.0),
            most=max_new_tokens,
        )
        source, lengths = self._source(input_ids, attention_mask)
        bos, eos = facts["bos_id"], facts["eos_id"]
        with as_in_evaluation(self):
            found = search(self.model, source, lengths, bos=bos, eos=eos, forbidden=facts["special_ids"], beam=beam)
        longest = max(map(len, found))
        rows = [[bos, *one, *[eos] * (longest + 1 - len(one))] for one in found]
        return torch.tensor(rows, device=input_ids.device)

    def _source(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return (tokens, None) if mask is None or bool(mask.all()) else self._turned(tokens, mask)[:2]


def register_models() -> None:
    """Makes the classes known to transformers' Auto classes; calling it again changes nothing."""
    AutoConfig.register(MODEL_TYPE, LongspanConfig, exist_ok=True)
    for auto, model in (
        (AutoModel, LongspanModel),
        (AutoModelForSeq2SeqLM, LongspanForSeq2SeqLM),
        (AutoModelForCausalLM, LongspanForCausalLM),
        (AutoModelForMaskedLM, LongspanForMaskedLM),
        (AutoModelForSequenceClassification, LongspanForSequenceClassification),
        (AutoModelForTokenClassification, LongspanForTokenClassification),
    ):
        auto.register(LongspanConfig, model, exist_ok=True)

"""The values that the keys of `conf/model/`, `conf/task/`, `conf/optimizer/` and `conf/scheduler/` take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from longspan.config.schema.kinds import (
    Count,
    CountOrZero,
    FilePath,
    Fix,
    Fraction,
    NotNegative,
    Positive,
    Settings,
    Share,
    SomeShare,
    Text,
    settings_of,
)

NARROWEST_HEAD, WIDEST_HEAD = 16, 256  # what the attention kernels serve


def head_problem(width: int, heads: int, kv_heads: int | None, head_dim: int | None) -> tuple[str, str] | None:
    """(key, what to give) where heads of these sizes cannot be built."""
    if head_dim is None and width % heads:
        least, below = NARROWEST_HEAD * heads, width // heads * heads
        widths = " or ".join(str(w) for w in (below, below + heads) if w >= least) or str(least)
        return "width", f"must divide by model.heads={heads}: take width {widths}, or set model.head_dim"
    if heads % (kv_heads or heads):
        fits = ", ".join(str(d) for d in range(1, heads + 1) if heads % d == 0)
        return "kv_heads", f"must divide model.heads={heads}: one of {fits}"
    key, wide = ("heads", width // heads) if head_dim is None else ("head_dim", head_dim)
    if not NARROWEST_HEAD <= wide <= WIDEST_HEAD:
        need = f"width / heads (or model.head_dim) must be {NARROWEST_HEAD} to {WIDEST_HEAD}"
        return key, f"heads would be {wide} wide; {need}"
    if wide % 2:
        return key, f"heads would be {wide} wide; rotary positions need an even width"
    return None


@settings_of("longspan.models.transformer")
class Model(Settings):
    layers: Count
    width: Count
    heads: Count
    kv_heads: Count | None
    head_dim: Count | None
    mlp: Literal["swiglu", "gelu"]
    mlp_width: Count | None
    dropout: Fraction
    positions: Literal["auto", "rotary", "rotary_2d"] = "auto"
    rotary_base: Positive
    stem: Count | None
    reverse_complement: Literal["shared"] | None = None
    qk_norm: bool
    norm_eps: Positive
    activation_checkpointing: bool
    compile: bool | Literal["reduce-overhead"]
    attention_layers: Annotated[list[Text], Field(min_length=1), Fix("a list of names in attention, or null")] | None

    def problem(self) -> tuple[str, str] | None:
        return head_problem(self.width, self.heads, self.kv_heads, self.head_dim)


@settings_of("longspan.models.huggingface")
class HuggingFace(Settings):
    required = ("path",)

    path: FilePath
    pretrained: bool
    replaced_layers: (
        Annotated[list[int], Field(min_length=1), Fix("a list of layers, such as [0,1,-1], or null for all")] | None
    )
    activation_checkpointing: bool


@settings_of("longspan.models.encoder_decoder")
class EncoderDecoder(Model):
    decoder_layers: Count | None
    decoder_attention: Annotated[str | dict[str, Any] | None, Fix("a variant's name, a mapping of name and settings, or null")]
    cross_attention: Annotated[str, Field(min_length=1), Fix("full, a pattern such as Local(64), wait_k:3 or chunks:8")]
    causal_encoder: bool
    shared_embedding: bool


ClassWeights = Annotated[
    list[Positive] | Literal["balanced"] | None,
    Fix("a list of numbers above 0, one a class, such as [1.0, 3.0], or balanced, or null"),
]


class Task(Settings):
    """The keys of all tasks."""

    decay_embeddings: bool


@settings_of("longspan.tasks.LanguageModelling")
class LanguageModelling(Task):
    tied: bool


@settings_of("longspan.tasks.MaskedModelling")
class MaskedModelling(Task):
    tied: bool
    masked_share: SomeShare
    replaced_by_mask: Share
    replaced_at_random: Share
    mask_seed: CountOrZero

    def problem(self) -> tuple[str, str] | None:
        if self.replaced_by_mask + self.replaced_at_random > 1:
            return "replaced_by_mask", "task.replaced_by_mask and task.replaced_at_random must add to at most 1"
        return None


@settings_of("longspan.tasks.Compression")
class Compression(Task):
    """Compression."""


@settings_of("longspan.tasks.Recall")
class Recall(Task):
    causal: bool
    tied: bool


@settings_of("longspan.tasks.SequenceClassification", "longspan.tasks.PairClassification")
class SequenceClassification(Task):
    pooling: Literal["mean", "first"]
    head_dropout: Fraction
    average_strands: bool = False
    threshold: Annotated[float, Field(gt=0, lt=1), Fix("a probability between 0 and 1")]
    class_weights: ClassWeights
    label_smoothing: Fraction
    focal_gamma: NotNegative


@settings_of("longspan.tasks.SequenceRegression")
class SequenceRegression(Task):
    pooling: Literal["mean", "first"]
    head_dropout: Fraction
    average_strands: bool = False


@settings_of("longspan.tasks.TrackRegression")
class TrackRegression(Task):
    loss: Literal["poisson", "mse"]
    head_dropout: Fraction
    average_strands: bool = False


@settings_of("longspan.tasks.ContactRegression")
class ContactRegression(TrackRegression):
    pair_width: Count


@settings_of("longspan.tasks.SequenceToSequence")
class SequenceToSequence(Task):
    metrics: Annotated[
        list[Literal["bleu", "exact_match", "rouge1", "rouge2", "rougeL"]],
        Field(min_length=1),
        Fix("a list of bleu, exact_match, rouge1, rouge2 and rougeL, the primary one first"),
    ]
    bleu_tokenize: Literal["13a", "intl", "char", "zh", "none"]
    beam: Count
    length_penalty: NotNegative
    label_smoothing: Fraction
    tied: bool


@settings_of("longspan.tasks.TokenLabelling")
class TokenLabelling(Task):
    head_dropout: Fraction
    average_strands: bool = False
    class_weights: ClassWeights
    label_smoothing: Fraction
    focal_gamma: NotNegative


@settings_of("longspan.tasks.adamw")
class AdamW(Settings):
    required = ("lr",)

    lr: Annotated[float, Field(gt=0), Fix("a number above 0, such as 3e-3")]
    betas: Annotated[
        list[Fraction], Field(min_length=2, max_length=2), Fix("two numbers from 0 up to, not including, 1, as [0.9, 0.95]")
    ]
    eps: Positive
    weight_decay: NotNegative
    fused: bool | None


@settings_of("torch.optim.SGD")
class Sgd(Settings):
    closed = False

    lr: Annotated[float, Field(gt=0), Fix("a number above 0, such as 0.1")]
    momentum: Fraction
    weight_decay: NotNegative


WarmupSteps = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)],
    Fix("a whole number of steps, or a fraction of the run below 1"),
]


@settings_of("longspan.tasks.warmup_constant")
class WarmupConstant(Settings):
    warmup_steps: WarmupSteps


@settings_of("longspan.tasks.warmup_cosine")
class WarmupCosine(Settings):
    warmup_steps: WarmupSteps
    final_fraction: Share

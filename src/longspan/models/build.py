"""The transformer that `conf/model` describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from longspan.config.errors import wrong_value
from longspan.models.attention_choice import AttentionChoice
from longspan.models.strands import StrandEncoder
from longspan.models.transformer import Decoder, Encoder, Transformer

SHARED = "shared"


def transformer(
    *,
    causal: bool,
    vocab_size: int,
    max_length: int,
    attention: AttentionChoice,
    attention_layers: Sequence[str] | None = None,
    grid: Sequence[int] | None = None,
    patches: bool = False,
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    mlp: str = "swiglu",
    mlp_width: int | None = None,
    dropout: float = 0.0,
    positions: str = "auto",
    rotary_base: float = 10_000.0,
    stem: int | None = None,
    qk_norm: bool = False,
    norm_eps: float = 1e-6,
    activation_checkpointing: bool = False,
    compile: bool | str = False,
    reverse_complement: str | None = None,
    strands: Mapping[str, Any] | None = None,
) -> Transformer:
    """A :class:`Decoder` where `causal`, else an :class:`Encoder`; what `conf/model` calls, hence each key by name.

    Args:
        reverse_complement: "shared" for an encoder that reads both strands of DNA, see `StrandEncoder`; None: one strand.
        strands: `complement` and `bos_id` of the vocabulary, None where it has no other strand.
        others: see :class:`Transformer` and :class:`longspan.models.settings.TransformerSettings`.

    Raises:
        ConfigError: sizes that do not fit each other, or both strands where there are none or a model is causal.
    """
    kind: Callable[..., Transformer] = Decoder if causal else Encoder
    if reverse_complement is not None:
        kind = partial(StrandEncoder, strands=_both_strands(reverse_complement, causal, strands))
    return kind(
        vocab_size=vocab_size,
        max_length=max_length,
        attention=attention,
        attention_layers=attention_layers,
        grid=grid,
        patches=patches,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=mlp,
        mlp_width=mlp_width,
        dropout=dropout,
        positions=positions,
        rotary_base=rotary_base,
        stem=stem,
        qk_norm=qk_norm,
        norm_eps=norm_eps,
        activation_checkpointing=activation_checkpointing,
        compile=compile,
    )


def _both_strands(asked: str, causal: bool, strands: Mapping[str, Any] | None) -> dict[str, Any]:
    """The facts of the vocabulary that a `StrandEncoder` is built with."""
    if asked != SHARED:
        raise wrong_value("model.reverse_complement", asked, f"give {SHARED} or null")
    if causal:
        fix = "a causal model reads one strand in one direction; take an encoder (task=masked_modelling), or null"
        raise wrong_value("model.reverse_complement", asked, fix)
    if strands is None:
        fix = "the data's vocabulary has no other strand; set data.vocabulary=nucleotides, or null"
        raise wrong_value("model.reverse_complement", asked, fix)
    return dict(strands)

"""Transformers whose attention is chosen from outside."""

from longspan.models.attention_choice import attention_of_each_layer
from longspan.models.heads import (
    HeadedModel,
    LanguageModellingHead,
    MaskedModellingHead,
    SequenceClassificationHead,
    TokenLabellingHead,
)
from longspan.models.settings import ModelConfigError, TransformerSettings
from longspan.models.transformer import Decoder, Encoder, TokensError, Transformer, parameter_count, transformer
from longspan.models.warm_start import WarmStart, WarmStartError, read_weights, warm_start

__all__ = [
    "Decoder",
    "Encoder",
    "HeadedModel",
    "LanguageModellingHead",
    "MaskedModellingHead",
    "ModelConfigError",
    "SequenceClassificationHead",
    "TokenLabellingHead",
    "TokensError",
    "Transformer",
    "TransformerSettings",
    "WarmStart",
    "WarmStartError",
    "attention_of_each_layer",
    "parameter_count",
    "read_weights",
    "transformer",
    "warm_start",
]

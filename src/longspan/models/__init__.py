"""Transformers whose attention is chosen from outside."""

from longspan.models.attention_choice import attention_of_each_layer
from longspan.models.build import transformer
from longspan.models.encoder_decoder import EncoderDecoder, encoder_decoder
from longspan.models.heads import (
    HeadedModel,
    LanguageModellingHead,
    MaskedModellingHead,
    SequenceClassificationHead,
    TokenLabellingHead,
    token_head,
)
from longspan.models.pretrained import PretrainedTransformer, huggingface
from longspan.models.settings import TransformerSettings
from longspan.models.strands import OtherStrand, StrandEncoder
from longspan.models.transformer import Decoder, Encoder, Transformer, parameter_count
from longspan.models.warm_start import WarmStart, read_weights, warm_start

__all__ = [
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "HeadedModel",
    "LanguageModellingHead",
    "MaskedModellingHead",
    "OtherStrand",
    "PretrainedTransformer",
    "SequenceClassificationHead",
    "StrandEncoder",
    "TokenLabellingHead",
    "Transformer",
    "TransformerSettings",
    "WarmStart",
    "attention_of_each_layer",
    "encoder_decoder",
    "huggingface",
    "parameter_count",
    "read_weights",
    "token_head",
    "transformer",
    "warm_start",
]

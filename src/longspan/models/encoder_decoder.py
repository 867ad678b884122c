"""Encoder-decoder: a source in, a target out, token by token (arXiv:1706.03762).

Legend: B batch, Ts source tokens, Tt target tokens, C model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longspan.attention.named import built
from longspan.config.errors import wrong_value
from longspan.cost import Cost, total_cost
from longspan.models.attention_choice import AttentionChoice
from longspan.models.block import Block
from longspan.models.cache import ModelCache
from longspan.models.cross_attention import CrossAttention, CrossBlock, CrossCache, LayerCache, Memory
from longspan.models.settings import TransformerSettings
from longspan.models.sight import Sight, sight
from longspan.models.transformer import Decoder, Encoder, Transformer, parameter_count


class CrossDecoder(Decoder):
    """A decoder whose blocks look at a source between their attention and their MLP."""

    def __init__(self, *, sight: Sight, longest: int, **arguments: Any) -> None:
        self._sight, self._longest = sight, longest
        super().__init__(**arguments)

    def _block(self, settings: TransformerSettings, attention: nn.Module) -> Block:
        return CrossBlock(settings, attention, partial(CrossAttention, settings, self._sight, self._longest))

    def new_cache_over(self, memory: Memory, *, dtype: torch.dtype | None = None) -> ModelCache:
        """An empty cache for targets of the sources in `memory`, whose keys and values it holds."""
        states = memory.states
        cache = self.new_cache(len(states), device=states.device, dtype=dtype)
        lengths = memory.lengths
        if lengths is None:
            lengths = torch.full((len(states),), states.shape[1], device=states.device)
        blocks: list[Any] = self.layers()
        held = []
        for own, block in zip(cache.layers, blocks, strict=True):
            k, v = block.cross.keys_values(states)
            held.append(LayerCache(own, CrossCache(k, v, lengths)))
        cache.layers = held
        return cache

    def extend_source(self, cache: ModelCache, states: Tensor) -> None:
        """Takes further states [B, n, C] of streamed sources into a cache."""
        blocks: list[Any] = self.layers()
        for block, layer in zip(blocks, cache.layers, strict=True):
            layer.cross.extend(*block.cross.keys_values(states))


class EncoderDecoder(nn.Module):
    """An encoder of sources and a decoder of targets.

    Args:
        vocab_size, max_length: of sources.
        target_vocab_size, max_target_length: of targets.
        attention: of the encoder; see `attention_of_each_layer`.
        decoder_attention: of the decoder: a variant's name, or a mapping of `name` and its settings; None: as the encoder's.
        cross_attention: see `longspan.models.sight.sight`.
        layers, decoder_layers: of the encoder, and of the decoder (None: as many).
        causal_encoder: whether a source token sees only earlier ones, as streaming needs.
        shared_embedding: whether source and target tokens have one embedding; their vocabulary must be one.
        sizes: fields of `TransformerSettings`, of both.

    Raises:
        ConfigError: settings that do not fit each other.
    """

    causal = True

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        target_vocab_size: int,
        max_target_length: int,
        attention: AttentionChoice,
        attention_layers: Sequence[str] | None = None,
        decoder_attention: str | Mapping[str, Any] | None = None,
        cross_attention: str = "full",
        layers: int = 2,
        decoder_layers: int | None = None,
        causal_encoder: bool = False,
        shared_embedding: bool = False,
        **sizes: Any,
    ) -> None:
        super().__init__()
        longest = max(int(max_length), int(max_target_length))
        self.sight = sight(cross_attention, longest)
        if self.sight.streams and not causal_encoder:
            raise wrong_value(
                "model.causal_encoder",
                causal_encoder,
                f"give true: model.cross_attention={cross_attention} writes before the source is read to its end",
            )
        kind = Decoder if causal_encoder else Encoder
        self.encoder: Transformer = kind(
            vocab_size=vocab_size,
            max_length=max_length,
            attention=attention,
            attention_layers=attention_layers,
            layers=layers,
            **sizes,
        )
        chosen = attention if decoder_attention is None else _named(decoder_attention)
        self.decoder = CrossDecoder(
            sight=self.sight,
            longest=longest,
            vocab_size=target_vocab_size,
            max_length=max_target_length,
            attention=chosen,
            attention_layers=attention_layers if decoder_attention is None else None,
            layers=layers if decoder_layers is None else decoder_layers,
            **sizes,
        )
        if shared_embedding:
            if vocab_size != target_vocab_size:
                fix = "give false, or one vocabulary for both (data.target_vocabulary=null)"
                sizes_found = f"sources have {vocab_size} tokens and targets {target_vocab_size}"
                raise wrong_value("model.shared_embedding", True, f"{sizes_found}; {fix}")
            self.decoder.embedding = self.encoder.embedding
        self.settings = self.decoder.settings
        self.max_length, self.max_target_length = self.encoder.max_length, self.decoder.max_length
        self.vocab_size, self.width = self.decoder.vocab_size, self.decoder.width

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding of target tokens."""
        embedding = self.decoder.embedding
        assert isinstance(embedding, nn.Embedding)
        return embedding

    def encode(self, source: Tensor, *, lengths: Tensor | None = None, segments: Tensor | None = None) -> Memory:
        """The encoder's output for sources [B, Ts], for the decoder to attend to."""
        return Memory(self.encoder(source, lengths=lengths, segments=segments), lengths, segments)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        *,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        target_lengths: Tensor | None = None,
        target_segments: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, Tt, C] of target inputs [B, Tt], each after those before it, given sources [B, Ts].

        Raises:
            CallError: see `Transformer.forward`.
        """
        memory = self.encode(source, lengths=lengths, segments=segments)
        return self.decoder(target, lengths=target_lengths, segments=target_segments, memory=memory)

    def layers(self) -> list[Block]:
        """The encoder's blocks, then the decoder's."""
        return [*self.encoder.layers(), *self.decoder.layers()]

    def attention_modules(self) -> list[nn.Module]:
        """The self-attention of each layer, the encoder's first."""
        return [*self.encoder.attention_modules(), *self.decoder.attention_modules()]

    @property
    def full_layers(self) -> float:
        """As many layers of full attention over the source alone as have all pairs of this model: those of the encoder, of
        targets with themselves, and of targets with sources."""
        share = self.max_target_length / self.max_length
        return len(self.encoder.blocks) + len(self.decoder.blocks) * (share * share + share)

    @property
    def depends_on_padding(self) -> bool:
        """Whether the attention of some layer changes with the padded length."""
        return self.encoder.depends_on_padding or self.decoder.depends_on_padding

    def cost(self, length: int) -> Cost:
        """Of a source of `length` tokens and a target that is to it as the longest target is to the longest source."""
        target = max(1, round(length * self.max_target_length / self.max_length))
        blocks: list[Any] = self.decoder.layers()
        pairs = [block.cost_of_pair(target, length) for block in blocks]
        both = sum(pairs, total_cost(self.encoder.layers(), length))
        return dataclasses.replace(both, parameters=parameter_count(self))


def _named(choice: str | Mapping[str, Any]) -> Any:
    """A maker of the variant that a config names."""
    settings = dict(choice) if isinstance(choice, Mapping) else {"name": choice}
    name = settings.pop("name", None)

    def make(**place: Any) -> nn.Module:
        return built(str(name), settings, place, "model.decoder_attention")

    return make


def encoder_decoder(*, causal: bool = True, **settings: Any) -> EncoderDecoder:
    """Builds the model of `conf/model/encoder_decoder.yaml`; `causal` is the task's word for its decoder."""
    return EncoderDecoder(**settings)

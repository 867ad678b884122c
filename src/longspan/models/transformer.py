"""Encoder and decoder: token ids in, one vector a token out.

Legend: B batch, T tokens, C model width.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longspan.attention.named import placed
from longspan.config.errors import CallError, wrong_value
from longspan.cost import Cost, linear_flops, total_cost
from longspan.models.attention_choice import AttentionChoice, attention_of_each_layer
from longspan.models.block import Block
from longspan.models.cache import ModelCache
from longspan.models.patches import PatchEmbedding
from longspan.models.rotary import RotaryPositions
from longspan.models.settings import REDUCE_OVERHEAD, TransformerSettings
from longspan.models.stem import Stem


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_tokens(model: Any, tokens: Tensor, lengths: Tensor | None, segments: Tensor | None) -> None:
    """Raises CallError where a backbone with `max_length` and `vocab_size` cannot take these; see `Transformer.forward`."""
    of_patches = isinstance(getattr(model, "embedding", None), PatchEmbedding)
    if of_patches:
        if tokens.dim() != 3 or tokens.shape[2] != model.vocab_size or not tokens.shape[1]:
            raise CallError(f"patches must be [B, T, {model.vocab_size}], T at least 1; got {list(tokens.shape)}")
    elif tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32) or not tokens.shape[1]:
        raise CallError(f"tokens must be integers [B, T], T at least 1; got {tokens.dtype} {list(tokens.shape)}")
    if tokens.shape[1] > model.max_length:
        raise CallError(
            f"tokens are {tokens.shape[1]} long, but the model was built for max_length={model.max_length}; "
            "cut them, or build it for longer"
        )
    if lengths is not None and lengths.shape != tokens.shape[:1]:
        raise CallError(f"lengths must be [B] = [{tokens.shape[0]}]; got {list(lengths.shape)}")
    if segments is not None and segments.shape != tokens.shape[:2]:
        raise CallError(f"segments must be [B, T] = {list(tokens.shape[:2])}; got {list(segments.shape)}")
    if not of_patches and tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= model.vocab_size:
            fix = f"give 0 to {model.vocab_size - 1}, or build the model for the vocabulary that made the tokens"
            raise CallError(f"token id {low if low < 0 else high} is outside vocab_size={model.vocab_size}; {fix}")


class Transformer(nn.Module):
    """The base of encoder and decoder; use :class:`Encoder` or :class:`Decoder`.

    Args:
        vocab_size: number of token ids; of patches, numbers in each.
        max_length: longest sequence in tokens.
        attention: see :func:`longspan.models.attention_choice.attention_of_each_layer`.
        attention_layers: names of attentions, cycling over the layers, where `attention` is a dict.
        grid: rows and columns of images in tokens, which follow each other row by row; None for other sequences.
        patches: whether tokens are patches of images, [B, T, vocab_size] numbers from 0 to 255.
        sizes: fields of :class:`longspan.models.settings.TransformerSettings`.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    causal: ClassVar[bool]

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        attention: AttentionChoice,
        attention_layers: Sequence[str] | None = None,
        grid: Sequence[int] | None = None,
        patches: bool = False,
        **sizes: Any,
    ) -> None:
        super().__init__()
        settings = TransformerSettings(**sizes)
        for key, value in (("vocab_size", vocab_size), ("max_length", max_length)):
            if int(value) < 1:
                raise wrong_value(f"model.{key}", value, "give a whole number, 1 or more")
        self.settings = settings
        self.vocab_size, self.max_length, self.width = int(vocab_size), int(max_length), settings.width
        self.grid = None if grid is None else (int(grid[0]), int(grid[1]))
        self.embedding = self._embedding(patches)
        if settings.stem and not self.causal and settings.stem % 2 == 0:
            raise wrong_value("model.stem", settings.stem, "must be odd, as many tokens on each side; or null")
        self.stem = Stem(self.width, settings.stem, self.causal) if settings.stem else None
        self.dropout = nn.Dropout(settings.dropout)
        self.rotary = RotaryPositions(settings.head_width, settings.rotary_base, settings.rotary_columns(self.grid))
        makers = attention_of_each_layer(attention, settings.layers, attention_layers)
        place = {
            "heads": settings.heads,
            "kv_heads": settings.key_value_heads,
            "head_dim": settings.head_width,
            "causal": self.causal,
            "max_length": self.max_length,
            "grid": self.grid,
        }
        blocks = [
            self._block(
                settings,
                maker(**placed(maker, {**place, "layer": layer})),
            )
            for layer, maker in enumerate(makers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(self.width, eps=settings.norm_eps)
        if settings.compile:
            self._compile_blocks()

    def _embedding(self, patches: bool) -> nn.Embedding | PatchEmbedding:
        if patches:
            return PatchEmbedding(self.vocab_size, self.width)
        embedding = nn.Embedding(self.vocab_size, self.width)
        # As wide as tied logits of unit variance allow. GPT-2's 0.02 is drowned by what the first blocks add: on the
        # addresses (tiny, 150 steps of 4096 bytes) 0.02 ended at 2.76 bits a byte and
        # 0.1 at 2.53; this is 0.09 at that width.
        nn.init.normal_(embedding.weight, std=self.width**-0.5)
        return embedding

    def forward(
        self,
        tokens: Tensor,
        *,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        cache: ModelCache | None = None,
        memory: Any = None,
    ) -> Tensor:
        """Hidden states [B, T, C] of tokens [B, T], or of patches [B, T, P].

        What stands at or past `lengths` [B] is padding and means nothing.

        `segments` [B, T] keeps packed documents apart. With a `cache` of `new_cache`, tokens are those that follow the ones it
        holds, `lengths` says how many of them each sequence has, and hidden states are those of one pass over all. `memory` is
        what blocks with cross-attention look at.

        Raises:
            CallError: wrong shapes or dtypes, a sequence longer than `max_length`, ids outside the vocabulary (on
                a CPU; a GPU stops with a device assertion).
        """
        check_tokens(self, tokens, lengths, segments)
        if cache is not None:
            return self._decode(tokens, lengths, segments, cache)
        if self.settings.compile == REDUCE_OVERHEAD and not torch.compiler.is_compiling():
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs hold may be overwritten
        cos, sin = self.rotary(tokens.shape[1], tokens.device)  # (T, D/2)
        x = self.embedding(tokens)  # (B, T, C)
        if self.stem is not None:
            x = self.stem(x, lengths, segments)
        x = self.dropout(x)
        recompute = self.settings.activation_checkpointing and self.training and torch.is_grad_enabled()
        source = () if memory is None else (None, memory)
        for block in self.blocks:
            if recompute:
                x = checkpoint(block, x, cos, sin, lengths, segments, *source, use_reentrant=False)
            else:
                x = block(x, cos, sin, lengths, segments, *source)
        return self.norm(x)  # (B, T, C)

    def _block(self, settings: TransformerSettings, attention: nn.Module) -> Block:
        return Block(settings, attention)

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ModelCache:
        """An empty cache for `batch` sequences, on the device and of the dtype of the weights unless given.

        Raises:
            CallError: an attention that cannot decode; the message says why.
        """
        weight = self.embedding.weight
        device, dtype = weight.device if device is None else device, weight.dtype if dtype is None else dtype
        layers: list[Any] = self.attention_modules()
        stem = None if self.stem is None else torch.zeros((batch, self.stem.past, self.width), device=device, dtype=dtype)
        caches = [layer.new_cache(batch, device=device, dtype=dtype) for layer in layers]
        return ModelCache(caches, stem, torch.zeros(batch, dtype=torch.int64, device=device))

    @torch.no_grad()
    def _decode(self, tokens: Tensor, lengths: Tensor | None, segments: Tensor | None, cache: ModelCache) -> Tensor:
        """Hidden states [B, n, C] of tokens [B, n] after those in the cache, which takes them in."""
        n = tokens.shape[1]
        if segments is not None:
            raise CallError("segments with a cache: packed documents are not decoded; give each a sequence of its own")
        lengths = None if lengths is None else lengths.to(cache.positions).clamp(0, n)
        if cache.seen + n > self.max_length:
            longest = int((cache.positions + (n if lengths is None else lengths)).max())
            if longest > self.max_length:
                raise CallError(
                    f"{longest} tokens with those in the cache, but the model was built for max_length={self.max_length}; "
                    "give fewer, or build it for longer"
                )
        tables = self.rotary(min(cache.seen + n, self.max_length), tokens.device)
        places = cache.places(n, len(tables[0]))
        cos, sin = (table[places][:, None] for table in tables)  # (B, 1, n, D/2)
        x = self.embedding(tokens)  # (B, n, C)
        if self.stem is not None and cache.stem is not None:
            x, cache.stem = self.stem.decode(x, cache.stem.to(x.dtype), lengths)
        for block, layer in zip(self.layers(), cache.layers, strict=True):
            x = block.forward(x, cos, sin, lengths, None, layer)  # not a compiled one: shapes change at every call
        cache.advance(n, lengths)
        return self.norm(x)

    def _compile_blocks(self) -> None:
        """In place, so that weights keep their names; a block at a time, so that equal blocks share their code.

        Blocks that differ (an attention that knows its layer) all count against one limit of recompilations, 8 by
        default, after which torch would run the rest uncompiled.
        """
        limit = 8 * len(self.blocks)
        options: dict[str, Any] = {}
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            options["recompile_limit"] = limit
        else:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
        if self.settings.compile == REDUCE_OVERHEAD:
            options["mode"] = REDUCE_OVERHEAD
        for block in self.blocks:
            block.compile(**options)

    def cost(self, length: int) -> Cost:
        """Cost of one sequence of `length` tokens, forward: all blocks, no head."""
        cost = total_cost(self.layers(), length)
        if isinstance(self.embedding, PatchEmbedding):
            cost = cost + Cost(other_flops=linear_flops(length, self.vocab_size, self.width))
        return dataclasses.replace(cost, parameters=parameter_count(self))

    def layers(self) -> list[Block]:
        """The blocks, first to last, without what a strategy wraps them in (FSDP's own class states no cost)."""
        return [next(inner for inner in block.modules() if isinstance(inner, Block)) for block in self.blocks]

    @property
    def depends_on_padding(self) -> bool:
        """Whether the attention of some layer changes with the padded length T."""
        return any(getattr(module, "depends_on_padding", False) for module in self.attention_modules())

    def attention_modules(self) -> list[nn.Module]:
        """The attention module of each layer, first to last."""
        return [block.mixer.attention for block in self.layers()]


class Encoder(Transformer):
    """Every token may see both ways, as far as its attention lets it."""

    causal = False


class Decoder(Transformer):
    """No token sees a later one."""

    causal = True

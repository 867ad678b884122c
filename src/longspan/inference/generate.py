"""Text from a trained language model, token by token with a cache: greedy, or drawn by temperature, top-k and top-p.

Legend: B sequences, V vocabulary.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longspan.config.errors import CallError, ConfigError
from longspan.values import is_number, is_whole


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens, None for all.
        top_p: only the most likely tokens that together have this probability (arXiv:1904.09751), None for all.
        seed: of the draws; each sequence has its own, so that what it gets does not depend on its batch.

    Raises:
        ConfigError: a setting that cannot work.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_number(self.temperature, 0.0) or self.temperature == math.inf:
            raise ConfigError(f"temperature={self.temperature!r}: give a number, 0 for the most likely token, or above")
        if self.top_k is not None and not is_whole(self.top_k, 1):
            raise ConfigError(f"top_k={self.top_k!r}: give a number of tokens, 1 or more, or null for all")
        if self.top_p is not None and (not is_number(self.top_p, 0.0, 1.0) or self.top_p == 0.0):
            raise ConfigError(f"top_p={self.top_p!r}: give a probability above 0 and at most 1, or null for all")
        if not is_whole(self.seed, 0):
            raise ConfigError(f"seed={self.seed!r}: give a whole number, 0 or more")

    def distribution(self, logits: Tensor) -> Tensor:
        """Probabilities [B, V] float32 that tokens are drawn by, of logits [B, V]."""
        logits = logits.float()
        if self.temperature == 0.0:
            return nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        least = logits - logits.amax(-1, keepdim=True)  # at most 0, so that no temperature makes infinities of them
        logits = (least.double() / self.temperature).float()
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k, -1).values[:, -1:], float("-inf"))
        chances = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1.0:
            ordered, index = chances.sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # what is more likely; the first token always stays
            kept = torch.zeros_like(chances).scatter(-1, index, ordered.masked_fill(before >= self.top_p, 0.0))
            chances = kept / kept.sum(-1, keepdim=True)
        return chances


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    stop_tokens: Collection[int] = (),
    forbidden: Collection[int] = (),
) -> Iterator[list[int | None]]:
    """Yields the next token of each sequence, None for one that has ended, until all have.

    Args:
        model: tokens [B, T] to logits [B, T, V], with a backbone that has `new_cache` and `max_length`
            (`longspan.models.HeadedModel`); it should be in evaluation mode.
        prompts: token ids, of any lengths from 1 on.
        max_new_tokens: tokens to add to each.
        stop_tokens: a sequence ends after one of these.
        forbidden: ids that are never chosen, such as padding.

    Raises:
        ConfigError: no prompt, an empty one, or more tokens than the model was built for.
        CallError: an attention that cannot decode, or logits that are NaN.
    """
    sampling = Sampling(temperature=0.0) if sampling is None else sampling
    backbone = model.backbone
    _check(prompts, max_new_tokens, backbone)
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    tokens = torch.zeros((len(prompts), int(lengths.max())), dtype=torch.int64, device=device)  # padded on the right
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(list(prompt), device=device)
    cache = backbone.new_cache(len(prompts), dtype=_dtype(model))
    hidden = backbone(tokens, lengths=lengths, cache=cache)  # (B, T, C)
    hidden = hidden[torch.arange(len(prompts), device=device), lengths - 1]  # (B, C)
    draws = [torch.Generator().manual_seed(_seed(sampling.seed, row)) for row in range(len(prompts))]
    banned = torch.tensor(sorted(forbidden), dtype=torch.int64, device=device)
    ended = [False] * len(prompts)
    for step in range(max_new_tokens):
        logits = model.head(hidden).float().index_fill(-1, banned, float("-inf"))  # (B, V)
        if logits.isnan().any():
            raise CallError("the model's logits are NaN: its weights may have diverged; give an earlier checkpoint")
        sums = sampling.distribution(logits).cpu().double().cumsum(-1)
        at = torch.stack([torch.rand((), generator=draw, dtype=torch.float64) for draw in draws])
        chosen = torch.searchsorted(sums, (at * sums[:, -1])[:, None], right=True)[:, 0].clamp(max=sums.shape[1] - 1)
        found = chosen.tolist()
        yield [None if over else token for token, over in zip(found, ended, strict=True)]
        ended = [over or token in stop_tokens for token, over in zip(found, ended, strict=True)]
        if all(ended) or step == max_new_tokens - 1:
            return
        hidden = backbone(chosen[:, None].to(device), cache=cache)[:, 0]


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, backbone: Any) -> None:
    if not prompts:
        raise ConfigError("prompts: there is none; give one or more")
    if not getattr(backbone, "causal", False):
        raise ConfigError("checkpoint: its model looks both ways; give one of task=language_modelling")
    if not is_whole(max_new_tokens, 1):
        raise ConfigError(f"max_new_tokens={max_new_tokens!r}: give a number of tokens, 1 or more")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(f"prompts[{number}] is empty; give at least one token to go on from")
        if len(prompt) >= backbone.max_length:
            raise ConfigError(
                f"prompts[{number}] has {len(prompt)} tokens and the model was built for {backbone.max_length}, of which at "
                f"least one is new; give at most {backbone.max_length - 1}, such as the prompt's end"
            )
        if len(prompt) + max_new_tokens > backbone.max_length:
            raise ConfigError(
                f"max_new_tokens={max_new_tokens} after a prompt of {len(prompt)} tokens is more than the "
                f"{backbone.max_length} that the model was built for; give at most {backbone.max_length - len(prompt)}"
            )


def _seed(seed: int, row: int) -> int:
    return (seed * 1_000_003 + row) % (1 << 63)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)


class StreamedText:
    """Tokens to text as they come: a character is given once its last byte is there.

    Of a tokenizer whose tokens are no bytes of their own, each token gives what the text of all gains by it.
    """

    def __init__(self, vocabulary: Any) -> None:
        self.vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tokens: list[int] = []
        self._given = ""

    def add(self, token: int | None) -> str:
        """The characters that a token completes."""
        if token is None:
            return ""
        if self.vocabulary.byte_lengths is not None:
            return self._decoder.decode(self.vocabulary.decode_bytes([token]))
        self._tokens.append(token)
        text, given = self.vocabulary.decode(self._tokens).rstrip("\ufffd"), self._given
        if not text.startswith(given):
            return ""
        self._given = text
        return text[len(given) :]

    def end(self) -> str:
        """What was still open."""
        if self._tokens:
            return self.vocabulary.decode(self._tokens)[len(self._given) :]
        return self._decoder.decode(b"", final=True)

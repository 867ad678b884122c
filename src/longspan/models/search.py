"""Targets for sources, token by token with caches: greedy, or by beam search.

Legend: B sources, K beams a source, V vocabulary, C model width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.models.cross_attention import Memory

NEVER = float("-inf")


@dataclass(frozen=True)
class Beam:
    """How targets are searched for.

    Attributes:
        width: hypotheses that are kept for each source; 1 is greedy.
        length_penalty: hypotheses are compared by log-probability / tokens ** length_penalty (arXiv:1609.08144 has a like one).
        most: tokens of a target at most, its end included; None: as many as the model was built for.
    """

    width: int = 1
    length_penalty: float = 1.0
    most: int | None = None


@torch.no_grad()
def search(
    model: Any,
    source: Tensor,
    lengths: Tensor | None,
    *,
    bos: int,
    eos: int,
    forbidden: Collection[int] = (),
    beam: Beam | None = None,
) -> list[list[int]]:
    """The best target of each source [B, Ts] that was found, without its <bos> and <eos>.

    A finished hypothesis stays in the beam and competes with those that go on. A streaming model does not end a target before
    its source is read.

    Args:
        model: `HeadedModel` of an `EncoderDecoder`, in evaluation mode.
        lengths: [B], tokens of each source; None for all.
        bos, eos: the token that a target begins with, and the one that ends it.
        forbidden: ids that are never chosen, such as padding.
    """
    beam = Beam() if beam is None else beam
    both, K, B, device = model.backbone, beam.width, len(source), source.device
    most = both.max_target_length if beam.most is None else min(beam.most, both.max_target_length)
    memory = both.encode(source, lengths=lengths)
    lengths = torch.full((B,), source.shape[1], device=device) if lengths is None else lengths
    copies = torch.arange(B, device=device).repeat_interleave(K)
    cache = both.decoder.new_cache_over(Memory(memory.states[copies], lengths[copies]), dtype=memory.states.dtype)
    banned = torch.tensor(sorted({*forbidden} - {eos}), dtype=torch.int64, device=device)
    scores = torch.full((B, K), NEVER, device=device)
    scores[:, 0] = 0.0  # all beams are one at first
    ended = torch.zeros((B, K), dtype=torch.bool, device=device)
    sizes = torch.zeros((B, K), dtype=torch.int64, device=device)
    chosen = torch.full((B, K, 0), eos, dtype=torch.int64, device=device)
    last = torch.full((B * K, 1), bos, dtype=torch.int64, device=device)
    for step in range(most):
        hidden = both.decoder(last, cache=cache)[:, -1]  # (B K, C)
        gains = model.head(hidden).float().log_softmax(-1).view(B, K, -1)  # (B, K, V)
        gains = gains.index_fill(-1, banned, NEVER)
        if both.sight.streams:
            unread = torch.tensor([both.sight.read_before(step, n) < n for n in lengths.tolist()], device=device)
            gains[..., eos] = gains[..., eos].masked_fill(unread[:, None], NEVER)
        V = gains.shape[-1]
        stays = torch.full_like(gains, NEVER)
        stays[..., eos] = 0.0
        totals = scores[..., None] + torch.where(ended[..., None], stays, gains)  # (B, K, V)
        tokens = sizes + (~ended).long()
        ranks = totals / tokens[..., None].clamp(min=1) ** beam.length_penalty
        place = ranks.flatten(1).topk(K).indices  # (B, K)
        parent, token = place // V, place % V
        scores = totals.flatten(1).gather(1, place)
        sizes, ended = tokens.gather(1, parent), ended.gather(1, parent) | (token == eos)
        chosen = torch.cat((chosen.gather(1, parent[..., None].expand(B, K, step)), token[..., None]), 2)
        if bool(ended.all()):
            break
        if K > 1:
            cache.select((torch.arange(B, device=device)[:, None] * K + parent).flatten())
        last = token.view(-1, 1)
    found = []
    for row in chosen[:, 0].tolist():  # topk puts the best first
        found.append(row[: row.index(eos)] if eos in row else row)
    return found


class StreamedTarget:
    """Writes a target while its source comes in: greedy, when its policy (`wait_k`, `chunks`) has read enough.

    Args:
        model: `HeadedModel` of an `EncoderDecoder` with a streaming `cross_attention`, in evaluation mode.
        bos, eos, forbidden: as for `search`.

    Attributes: `reads`, how many source tokens had been read before each token that was written.
    """

    def __init__(self, model: Any, *, bos: int, eos: int, forbidden: Collection[int] = ()) -> None:
        if not model.backbone.sight.streams:
            raise ValueError("model.cross_attention sees the whole source; train with wait_k:3 or chunks:8 to stream")
        self.model, self.both, self.eos = model, model.backbone, eos
        self.device = next(model.parameters()).device
        self.banned = torch.tensor(sorted({*forbidden} - {eos}), dtype=torch.int64, device=self.device)
        self._source = self.both.encoder.new_cache(1)
        self._cache: Any = None
        self._last, self._read, self._ended = bos, 0, False
        self.reads: list[int] = []

    @torch.no_grad()
    def read(self, tokens: list[int]) -> list[int]:
        """Takes further source tokens in; what can be written now, without the source's end being known."""
        written: list[int] = []
        for token in tokens:
            states = self.both.encoder(torch.tensor([[token]], device=self.device), cache=self._source)
            if self._cache is None:
                self._cache = self.both.decoder.new_cache_over(Memory(states), dtype=states.dtype)
            else:
                self.both.decoder.extend_source(self._cache, states)
            self._read += 1
            # the source's last token is known as such only at its end: a token that waits for all of it waits for that
            while not self._ended and self._wants() <= self._read - 1 and len(self.reads) < self.both.max_target_length:
                written += self._write(can_end=False)
        return written

    @torch.no_grad()
    def end(self) -> list[int]:
        """The rest of the target, once the source is known to be over."""
        written: list[int] = []
        while self._read and not self._ended and len(self.reads) < self.both.max_target_length:
            written += self._write(can_end=self._wants() >= self._read)
        return written

    def _wants(self) -> int:
        return self.both.sight.read_before(len(self.reads), 1 << 60)

    def _write(self, can_end: bool) -> list[int]:
        hidden = self.both.decoder(torch.tensor([[self._last]], device=self.device), cache=self._cache)[:, -1]
        gains = self.model.head(hidden).float().index_fill(-1, self.banned, NEVER)
        if not can_end:
            gains[:, self.eos] = NEVER
        self._last = int(gains.argmax(-1))
        self.reads.append(min(self._wants(), self._read))
        self._ended = self._last == self.eos
        return [] if self._ended else [self._last]

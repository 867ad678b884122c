"""`attention=adaptive_span`: each head learns how far back (or around) it looks.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from longspan.attention.base import Lengths, PatternAttention, held_keys, visited_pairs
from longspan.attention.content import without_padding
from longspan.attention.decoding import as_in_evaluation, check_keys
from longspan.attention.errors import not_flash, not_meta, wrong_setting
from longspan.attention.key_cache import KeyCache
from longspan.attention.ramp import CHUNK, banded_attention, ramp_weight
from longspan.attention.weights import ShowsWeights
from longspan.cost import Cost
from longspan.functional import sparse_attention
from longspan.patterns import BlockTable, Full, Local, Pattern, PerHead
from longspan.values import is_number, is_whole
from longspan_kernels.launch import cast_as_products, without_autocast
from longspan_kernels.selected import merge_by_lse

UNIT = 64  # the part that the sparse kernel computes grows in these steps, so that its pattern rarely changes


class AdaptiveSpan(ShowsWeights):
    """Each weight times clamp((ramp + span - distance) / ramp, 0, 1), renormalised (arXiv:1905.07799).

    Distances at which that is 1 whatever happens go through the sparse kernel; the last ones, the ramp among them, are a
    band in plain torch, and the two are merged by their log-sum-exp. So a head costs what its span asks for. `harden`
    turns the spans into windows of the distances whose factor is one half or more.

    At whole spans the factor has a kink at two distances, where the span gets the gradient that torch's clamp gives: the slope,
    at distance span as at distance span + ramp. It gets none from keys ahead at a span of 0 with a ramp of 1, whose only factor
    there is 0.

    Args:
        heads, kv_heads, head_dim, causal, dropout, backend: as in `PatternAttention`.
        max_length: tokens of the longest sequence, which has to be known.
        ramp: tokens over which weights fall to 0.
        max_span: longest span in tokens; None for `max_length`.
        initial_span: tokens at the start.
        coefficient: of the mean span over heads, in tokens, in the loss.
        span_learning_rate: tokens a step that a span may move, as a share of `max_span`; None: over all of it in a quarter
            of the run.
        harden_at: the share of the run after which spans become windows.

    Raises:
        ConfigError: a setting that cannot work, by its config key.
    """

    window: Tensor
    cost_changes = True  # cost(length) is of the spans as they are now

    def __init__(
        self,
        *,
        ramp: int = 32,
        max_span: int | None = None,
        initial_span: int = 0,
        coefficient: float = 1e-4,
        span_learning_rate: float | None = None,
        harden_at: float = 0.8,
        dropout: float = 0.0,
        backend: str = "auto",
        heads: int,
        head_dim: int,
        causal: bool,
        kv_heads: int | None = None,
        layer: int = 0,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        if max_length is None:
            raise wrong_setting("max_span", f"= {max_span} needs a known longest sequence; give max_length")
        self.length = _whole("max_length", max_length, 1)
        self.max_span = self.length if max_span is None else _whole("max_span", max_span, 1)
        if self.max_span > self.length:
            raise wrong_setting(
                "max_span", f"= {max_span} is more than the {self.length} tokens of the longest sequence; give fewer, or null"
            )
        self.ramp, initial = _whole("ramp", ramp, 1), _whole("initial_span", initial_span, 0)
        if initial > self.max_span:
            raise wrong_setting("initial_span", f"= {initial} is beyond the longest span; give 0 to {self.max_span}")
        self.coefficient = _number("coefficient", coefficient, 0.0, math.inf)
        self.span_learning_rate = None
        if span_learning_rate is not None:
            self.span_learning_rate = _number("span_learning_rate", span_learning_rate, 0.0, 1.0)
        self._harden_at = _number("harden_at", harden_at, 0.0, 1.0)
        not_flash(backend, "spans that are learned")
        self.plain = PatternAttention(
            Full(), heads=heads, kv_heads=kv_heads, head_dim=head_dim, causal=causal, dropout=dropout, backend=backend
        )
        self.heads, self.head_dim, self.causal, self.backend = heads, head_dim, causal, backend
        self.kv_heads, self.dropout = self.plain.kv_heads, self.plain.dropout
        # Spans as a share of the longest, so that an optimizer's step means the same at any length.
        self.share = nn.Parameter(torch.full((heads,), initial / self.max_span))
        self.register_buffer("window", torch.zeros(heads, dtype=torch.int64))  # 0 until hardened
        self._hardened = False
        self._known: tuple[Any, list[int]] | None = None

    def spans(self) -> Tensor:
        """[H] tokens, differentiable."""
        return self.share.clamp(0.0, 1.0) * self.max_span

    # -- training -------------------------------------------------------------------------------------------------

    @property
    def hardened(self) -> bool:
        """Whether the spans have become windows."""
        return self._hardened

    @property
    def harden_at(self) -> float:
        """The share of the run after which to harden."""
        return self._harden_at

    def begin_step(self, step: int, total: int) -> None:
        """Before each training step: keeps spans within their bounds."""
        with torch.no_grad():
            self.share.clamp_(0.0, 1.0)  # a share beyond them would have no gradient to come back by
        self._known = None

    def learning_rates(self, total_steps: int) -> dict[str, float]:
        """Rates that differ from the optimizer's, by parameter name."""
        return {"share": self.span_learning_rate or min(0.05, 4.0 / max(1, total_steps))}

    def auxiliary_loss(self) -> Tensor:
        """coefficient * mean span; 0 once hardened."""
        return (0.0 if self.hardened else self.coefficient) * self.spans().float().mean()

    @torch.no_grad()
    def harden(self) -> Pattern:
        """Local windows of the distances whose factor is one half or more."""
        if not self.hardened:
            reach = (self.spans().float() + self.ramp / 2).floor().long().clamp(max=self.length - 1)  # farthest distance
            self.window.copy_(reach + 1 if self.causal else 2 * reach + 1)
            self._restore()
        return self.plain.pattern

    def _restore(self) -> None:
        windows = self.window.tolist()
        self._known = None
        self._hardened = all(window > 0 for window in windows)
        self.plain.repattern(_per_head([Local(window) for window in windows]) if self._hardened else Full())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._restore()
        farthest = int(self.window.max()) - 1 if self.causal else int(self.window.max()) // 2
        if farthest > self.max_span + self.ramp / 2:
            raise wrong_setting(
                "max_span",
                f"= {self.max_span}, and the checkpoint's windows are final and reach {farthest} tokens; give at "
                "least that, or a checkpoint from before they were final or of another attention",
            )

    def train(self, mode: bool = True) -> AdaptiveSpan:
        """Weights may be swapped for their average between training and evaluation."""
        self._known = None
        return super().train(mode)

    # -- attention ------------------------------------------------------------------------------------------------

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Lengths | None = None, segments: Lengths | None = None):
        """q [B, H, T, D], k and v [B, Hkv, T, D] -> [B, H, T, D]; see `PatternAttention`."""
        if self.hardened:
            return self.plain(q, k, v, lengths=lengths, segments=segments)
        if isinstance(lengths, tuple) or isinstance(segments, tuple) or q.shape[2] != k.shape[2]:
            raise ValueError(
                f"adaptive spans attend within one sequence until they are hardened; q has {q.shape[2]} tokens and k "
                f"{k.shape[2]}: give them equally many, with one tensor of lengths and of segments"
            )
        check_keys(self, q, k)
        if not q.numel():
            return q.clone()
        return self._soft(q, k, v, lengths, segments)

    @torch.compiler.disable
    def _soft(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        q, k, v = cast_as_products(q, k, v)
        # Bands work on what lies beyond a length too: it is zeros to them, and the gradient that comes to it is dropped.
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        dropout_p = self.dropout if self.training else 0.0
        cores = self._cores()
        pattern = self._core_pattern(cores)
        parts: list[Any] = []
        if pattern is not None:
            core = sparse_attention(
                q,
                k,
                v,
                pattern,
                causal=self.causal,
                lengths=lengths,
                segments=segments,
                dropout_p=dropout_p,
                return_lse=True,
                backend=self.backend,
            )
            parts.append(core)
        with without_autocast(q):
            parts.append(self._band(q, k, v, cores, lengths, segments, dropout_p, ahead=False))
            if not self.causal:
                parts.append(self._band(q, k, v, cores, lengths, segments, dropout_p, ahead=True))
        return without_padding(merge_by_lse(parts, backend=self.backend), lengths)

    def _band(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cores: list[int],
        lengths: Tensor | None,
        segments: Tensor | None,
        dropout_p: float,
        ahead: bool,
    ) -> tuple[Tensor, Tensor]:
        """Keys behind the core of each head, or ahead of it, head group by head group."""
        T, spans, per = q.shape[2], self.spans(), self.heads // self.kv_heads
        out, lse = [torch.empty(0)] * self.heads, [torch.empty(0)] * self.heads
        if ahead:  # the same backwards; what padding there is comes first then, told apart by segments
            if lengths is not None:
                exists = torch.arange(T, device=q.device) < lengths[:, None]
                own = torch.zeros_like(exists, dtype=torch.int64) if segments is None else segments
                segments = torch.where(exists, own, own.min() - 1 - torch.arange(T, device=q.device))
                beyond = ~exists[:, None, :, None]
                q, k, v = q.masked_fill(beyond, 0.0), k.masked_fill(beyond, 0.0), v.masked_fill(beyond, 0.0)
            q, k, v = q.flip(2), k.flip(2), v.flip(2)
            segments = None if segments is None else segments.flip(1)
        for core in sorted(set(cores)):
            members = [head for head, own_core in enumerate(cores) if own_core == core]
            shared = [head // per for head in members]
            start = max(core, 1) if ahead else core  # the query itself belongs to those behind
            width = min(core + UNIT + self.ramp, T) - start
            if width < 1:
                one = torch.zeros_like(q[:, members])
                found = (one, torch.full(one.shape[:3], float("-inf"), dtype=torch.float32, device=q.device))
            else:
                found = banded_attention(
                    q[:, members],
                    k[:, shared],
                    v[:, shared],
                    spans[members],
                    start,
                    width,
                    ramp=float(self.ramp),
                    scale=q.shape[3] ** -0.5,
                    lengths=None if ahead else lengths,
                    segments=segments,
                    dropout_p=dropout_p,
                )
            for place, head in enumerate(members):
                out[head], lse[head] = found[0][:, place], found[1][:, place]
        outs, lses = torch.stack(out, 1), torch.stack(lse, 1)
        if ahead:
            outs, lses = outs.flip(2), lses.flip(2)
            if lengths is not None:
                lses = lses.masked_fill(~exists[:, None], float("-inf"))
        return outs, lses

    @torch.no_grad()  # else a pass that finds them known would save fewer tensors than one that does not
    def _cores(self) -> list[int]:
        """Per head the distances, from 0, that the sparse kernel computes: whole units within the span."""
        version = (self.share._version, self.share.data_ptr())
        if self._known is None or self._known[0] != version:
            not_meta(self.share, "adaptive_span visits what its spans reach")
            spans = self.spans().float().cpu()
            self._known = (version, [int(span) // UNIT * UNIT for span in spans])
        return self._known[1]

    def _core_pattern(self, cores: list[int]) -> Pattern | None:
        """Distances below each head's core; None where all are 0."""
        if not any(cores):
            return None
        blocks = -(-self.length // UNIT)
        nothing = BlockTable(torch.zeros(blocks, blocks, dtype=torch.bool), UNIT)
        return _per_head([Local(core if self.causal else 2 * core - 1) if core else nothing for core in cores])

    # -- decoding ---------------------------------------------------------------------------------------------------

    def new_cache(self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KeyCache:
        """Keeps the keys within each head's span; see `Decodes.new_cache`."""
        if self.undecodable:
            super().new_cache(batch)
        return KeyCache(
            self.pattern,
            batch,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_length=self.length,
            device=device,
            dtype=dtype,
        )

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: KeyCache, *, lengths: Tensor | None = None) -> Tensor:
        """q [B, H, n, D], k and v [B, Hkv, n, D] -> [B, H, n, D]; see `Decodes.decode`."""
        lengths = self.check_decode(q, k, v, cache, lengths)
        spans, ramp = self.spans().detach(), float(self.ramp)
        spans = spans.to(torch.promote_types(spans.dtype, torch.float32))

        def soft(head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return ramp_weight(i - j, spans[head], ramp).clamp(min=1e-30).log()

        with as_in_evaluation(self):
            if cache.seen:
                out = cache.attend(q, k, v, lengths, bias=None if self.hardened else soft)
            else:
                out = self(q, k, v, lengths=lengths)
            cache.add(k, v, lengths)
        return out

    # -- what it is -----------------------------------------------------------------------------------------------

    def _reaches(self) -> list[int]:
        """Per head the farthest distance whose factor is above 0."""
        return [math.ceil(span + self.ramp) - 1 for span in self.spans().detach().float().tolist()]

    @property
    def pattern(self) -> Pattern:
        """The pairs that have a weight now."""
        if self.hardened:
            return self.plain.pattern
        return _per_head([Local(reach + 1 if self.causal else 2 * reach + 1) for reach in self._reaches()])

    def density(self) -> float:
        """Pairs that have a weight now over T * T, at the longest length, mean over heads."""
        return self.pattern.live_pairs(self.length, heads=self.heads, causal=self.causal) / (self.heads * self.length**2)

    def cost(self, length: int) -> Cost:
        """As in `PatternAttention`, for the spans as they are now; the band visits whole chunks."""
        if self.hardened:
            return self.plain.cost(length)
        cores = self._cores()
        pattern = self._core_pattern(cores)
        visited = 0
        if pattern is not None:
            visited = visited_pairs(pattern, length, self.heads, self.causal)
        rows = -(-length // CHUNK) * CHUNK
        for core in cores:
            for start in (core,) if self.causal else (core, max(core, 1)):
                width = min(core + UNIT + self.ramp, length) - start
                visited += rows * (width + CHUNK - 1) if width > 0 else 0
        live = self.pattern.live_pairs(length, heads=self.heads, causal=self.causal)
        per_pair = 4 * self.head_dim
        held = held_keys(self.pattern, length, self.heads, self.kv_heads, self.causal)
        return Cost(live, visited, per_pair * live, per_pair * visited, state_bytes=4 * self.head_dim * held)

    def gate_table(self) -> list[dict[str, Any]]:
        """Per head its span and window, for people and records."""
        spans = self.spans().detach().float().tolist()
        return [{"head": head, "span": spans[head], "window": window} for head, window in enumerate(self.window.tolist())]

    def extra_repr(self) -> str:
        return f"ramp={self.ramp}, max_span={self.max_span}, coefficient={self.coefficient}, hardened={self.hardened}"


adaptive_span = AdaptiveSpan


def _per_head(patterns: list[Pattern]) -> Pattern:
    return patterns[0] if len(set(patterns)) == 1 else PerHead(patterns)


def _whole(key: str, value: Any, least: int) -> int:
    if not is_whole(value, least):
        raise wrong_setting(key, f"= {value!r}; give a whole number of tokens, {least} or more")
    return value


def _number(key: str, value: Any, least: float, most: float) -> float:
    if not is_number(value, least, most):
        upper = "or more" if math.isinf(most) else f"to {most}"
        raise wrong_setting(key, f"= {value!r}; give a number, {least} {upper}")
    return float(value)

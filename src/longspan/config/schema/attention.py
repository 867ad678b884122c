"""The values that the keys of `conf/attention/` take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from longspan.config.schema.kinds import (
    BlockSize,
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
    settings_of,
    whole,
)

Position = Annotated[int, Field(ge=0), Fix("a token position, 0 or more")]
Backend = Literal["auto", "triton", "blocked", "dense", "flash"]
LinearBackend = Literal["auto", "triton", "chunked", "reference", "fla"]
Parts = Annotated[list[str | dict[str, Any]], Field(min_length=1), Fix("a list of variants, such as [gated_delta*3, full]")]
A = "longspan.attention."


class Attention(Settings):
    """The keys of every variant."""

    dropout: Fraction
    backend: Backend


@settings_of(f"{A}full")
class Full(Attention):
    """Full attention."""


@settings_of(f"{A}local")
class Local(Attention):
    window: Count


@settings_of(f"{A}local2d")
class Local2D(Attention):
    window: Count
    dilation: Count
    edges: Literal["cut", "shift"]
    height: Count | None
    width: Count | None

    def problem(self) -> tuple[str, str] | None:
        if (self.height is None) == (self.width is None):
            return None
        return ("height" if self.height is None else "width"), "give it too, or null for both"


@settings_of(f"{A}dilated")
class Dilated(Attention):
    window: Count
    dilation: Count
    dilated_heads: CountOrZero | None


@settings_of(f"{A}strided")
class Strided(Attention):
    stride: Count
    window: Count | None


@settings_of(f"{A}fixed")
class Fixed(Attention):
    stride: Count
    summary: Count


@settings_of(f"{A}global_")
class Global(Attention):
    first: CountOrZero | None
    positions: list[Position] | None

    def problem(self) -> tuple[str, str] | None:
        if self.first is None and self.positions is None:
            return "first", "give a number of tokens, or give attention.positions"
        if self.first is not None and self.positions is not None:
            return "first", "attention.positions is given too; give null for one of them"
        return None


@settings_of(f"{A}longformer")
class Longformer(Attention):
    window: Count
    global_positions: list[Position]


@settings_of(f"{A}random")
class Random(Attention):
    blocks: Count
    block_size: Count
    seed: CountOrZero


@settings_of(f"{A}bigbird")
class BigBird(Attention):
    block_size: Count
    window_blocks: Annotated[int, Field(ge=1), Fix("an odd number of blocks, such as 3")]
    random_blocks: CountOrZero
    global_blocks: CountOrZero
    seed: CountOrZero

    def problem(self) -> tuple[str, str] | None:
        odd = self.window_blocks % 2
        return None if odd else ("window_blocks", f"give an odd number, such as {self.window_blocks + 1}")


@settings_of(f"{A}block_table")
class BlockTable(Attention):
    table: Annotated[FilePath | list[Any] | None, Fix("a .npy, .pt or .csv file, nested lists of 0s and 1s, or null")]
    block_size: Count


@settings_of(f"{A}per_head")
class PerHead(Attention):
    patterns: Annotated[list[str | dict[str, Any]], Field(min_length=1), Fix("a list of variants, such as [local, full]")]


@settings_of(f"{A}learned")
class Learned(Attention):
    density: SomeShare
    block_size: BlockSize
    offsets: CountOrZero | None
    global_blocks: CountOrZero
    strides: Annotated[list[Count], Fix("a list of strides, such as [128], or [] for none")]
    stride_from: Count
    open_until: Share
    reached_at: Share
    harden_at: Share
    update_every: Count
    closed_below: Annotated[float, Field(gt=0, le=0.5), Fix("a chance above 0, at most 0.5")]
    open_at_most: Annotated[float, Field(ge=1), Fix("how many times its target may be open, 1 or more")]
    gate_learning_rate: Positive | None
    multiplier_rate: Positive
    seed: CountOrZero

    def problem(self) -> tuple[str, str] | None:
        if self.reached_at < self.open_until:
            return "reached_at", f"give a share of the run from open_until={self.open_until} to 1"
        if self.harden_at < self.reached_at:
            return "harden_at", f"give a share of the run from reached_at={self.reached_at} to 1"
        return None


@settings_of(f"{A}moba")
class Moba(Attention):
    block_size: BlockSize
    top_k: Count


@settings_of(f"{A}dsa")
class Dsa(Attention):
    top_k: Count
    indexer_heads: Count
    indexer_width: whole(16, meaning="numbers a head")  # type: ignore[valid-type]
    warmup_steps: CountOrZero
    indexer_loss: NotNegative


@settings_of(f"{A}nsa")
class Nsa(Attention):
    block_size: BlockSize
    top_k: whole(3, meaning="a number of blocks")  # type: ignore[valid-type]
    compressed_block: Count
    compressed_stride: Count
    window: Count
    compression: Literal["mlp", "mean"]
    branch_keys: bool
    gates: Literal["query", "token"]

    def problem(self) -> tuple[str, str] | None:
        for key in ("compressed_block", "block_size"):
            if getattr(self, key) % self.compressed_stride:
                return "compressed_stride", f"give a divisor of {key}={getattr(self, key)}"
        return None


@settings_of(f"{A}reformer")
class Reformer(Attention):
    chunk: BlockSize
    buckets: Annotated[int, Field(ge=2), Fix("a power of two, 2 or more")] | None
    rounds: Count
    chunks: Literal["aligned", "sorted", "transformers"]
    seed: CountOrZero

    def problem(self) -> tuple[str, str] | None:
        if self.buckets is not None and self.buckets & (self.buckets - 1):
            near = 1 << (self.buckets.bit_length() - 1)
            return "buckets", f"give a power of two, such as {near} or {2 * near}, or null"
        return None


@settings_of(f"{A}routing")
class Routing(Attention):
    clusters: Count | None
    window: Count | None
    membership: Literal["auto", "balanced", "nearest"]
    decay: Fraction
    seed: CountOrZero


@settings_of(f"{A}sinkhorn")
class Sinkhorn(Attention):
    block_size: BlockSize
    iterations: Count
    temperature: Annotated[float, Field(ge=1e-3), Fix("a number, 0.001 or more")]
    noise: NotNegative


@settings_of(f"{A}adaptive_span")
class AdaptiveSpan(Attention):
    ramp: Count
    max_span: Count | None
    initial_span: CountOrZero
    coefficient: NotNegative
    span_learning_rate: Share | None
    harden_at: Share


class StateAttention(Settings):
    """The keys of variants that keep a state."""

    backend: LinearBackend


@settings_of(f"{A}linear")
class Linear(StateAttention):
    feature_map: Literal["elu1", "relu", "exp", "learned"]
    normalise: bool


@settings_of(f"{A}performer")
class Performer(StateAttention):
    features: Annotated[int, Field(ge=16, le=256), Fix("a number of random features, 16 to 256, or null")] | None
    redraw: Count | None
    seed: CountOrZero


@settings_of(f"{A}retention")
class Retention(StateAttention):
    output_gate: bool


class Convolved(StateAttention):
    """The keys of variants with a short convolution before them."""

    short_conv: CountOrZero
    output_gate: bool

    def problem(self) -> tuple[str, str] | None:
        return ("short_conv", "give 2 tokens or more, or 0 for none") if self.short_conv == 1 else None


@settings_of(f"{A}gated_linear")
class GatedLinear(Convolved):
    """Gated linear attention."""


@settings_of(f"{A}gated_delta")
class GatedDelta(Convolved):
    decay: bool


class TorchAttention(Settings):
    """The keys of variants that plain torch computes on any device."""

    dropout: Fraction
    backend: Literal["auto", "blocked"]


@settings_of(f"{A}linformer")
class Linformer(TorchAttention):
    projected: Count
    share: bool


@settings_of(f"{A}synthesizer")
class Synthesizer(TorchAttention):
    kind: Literal["random", "dense", "factorised", "factorised_dense"]
    rank: Count


@settings_of(f"{A}compressed")
class Compressed(TorchAttention):
    window: Count
    rate: Count
    compression: Literal["pooled", "strided", "convolved"]

    def problem(self) -> tuple[str, str] | None:
        return ("rate", f"give at most window={self.window}") if self.rate > self.window else None


@settings_of(f"{A}hybrid")
class Hybrid(Settings):
    layers: Parts


@settings_of(f"{A}mixed_heads")
class MixedHeads(Settings):
    parts: Parts

"""Sizes of a transformer, checked before anything is built.

Legend: C model width, H query heads, Hkv key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.config.errors import wrong_value
from longspan.config.schema.model import head_problem
from longspan.values import is_whole

MLP_KINDS = ("swiglu", "gelu")
POSITIONS = ("auto", "rotary", "rotary_2d")


REDUCE_OVERHEAD = "reduce-overhead"


@dataclass(frozen=True)
class TransformerSettings:
    """One transformer's sizes.

    Attributes:
        layers: number of blocks.
        width: C, of the residual stream.
        heads: H.
        kv_heads: Hkv, a divisor of `heads` (grouped-query attention, 2305.13245); None means `heads`.
        head_dim: D; None means width / heads.
        mlp: "swiglu" (2002.05202) or "gelu".
        mlp_width: hidden width of the MLP; None means 4 C for gelu and 8/3 C, rounded up to 16, for swiglu, so that
            both have about the same parameters.
        dropout: after the embedding and on what each block adds to the residual stream; attention has its own.
        positions: "rotary", or "rotary_2d" by row and column of images; "auto" is the second where data are images.
        rotary_base: wavelength base of the rotary positions (2104.09864).
        stem: tokens that a short convolution over the embeddings mixes, odd where a model looks both ways (see `Stem`);
            None means none.
        qk_norm: RMSNorm on queries and keys, a head at a time, before rotation (2302.05442).
        norm_eps: of every RMSNorm (1910.07467).
        activation_checkpointing: recompute each block in the backward rather than keep its activations.
        compile: run each block through torch.compile; "reduce-overhead" also replays it from CUDA graphs, which pays
            where a step is short and lengths are few.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp: str = "swiglu"
    mlp_width: int | None = None
    dropout: float = 0.0
    positions: str = "auto"
    rotary_base: float = 10_000.0
    stem: int | None = None
    qk_norm: bool = False
    norm_eps: float = 1e-6
    activation_checkpointing: bool = False
    compile: bool | str = False

    def __post_init__(self) -> None:
        for key in ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "stem"):
            value = getattr(self, key)
            if value is None and key in ("kv_heads", "head_dim", "mlp_width", "stem"):
                continue
            if not is_whole(value, 1):
                raise wrong_value(f"model.{key}", value, "give a whole number, 1 or more")
        self._check_heads()
        if self.mlp not in MLP_KINDS:
            raise wrong_value("model.mlp", self.mlp, f"choose one of {', '.join(MLP_KINDS)}")
        if self.positions not in POSITIONS:
            raise wrong_value("model.positions", self.positions, f"choose one of {', '.join(POSITIONS)}")
        if not 0.0 <= self.dropout < 1.0:
            raise wrong_value("model.dropout", self.dropout, "give a number from 0 up to, not including, 1")
        for key in ("rotary_base", "norm_eps"):
            if not getattr(self, key) > 0:
                raise wrong_value(f"model.{key}", getattr(self, key), "give a number above 0")
        for key in ("qk_norm", "activation_checkpointing"):
            if not isinstance(getattr(self, key), bool):
                raise wrong_value(f"model.{key}", getattr(self, key), "give true or false")
        if not isinstance(self.compile, bool) and self.compile != REDUCE_OVERHEAD:
            raise wrong_value("model.compile", self.compile, f"give true or false, or {REDUCE_OVERHEAD}")

    def _check_heads(self) -> None:
        problem = head_problem(self.width, self.heads, self.kv_heads, self.head_dim)
        if problem is not None:
            key, fix = problem
            raise wrong_value(f"model.{key}", getattr(self, key), fix)

    def rotary_columns(self, grid: tuple[int, int] | None) -> int | None:
        """Columns of the image whose rows and columns are turned by; None where positions count tokens.

        Args:
            grid: rows and columns of the data's images in tokens, None for other data.

        Raises:
            ConfigError: rows and columns are asked for, and the data has none or heads do not divide by 4.
        """
        if self.positions == "rotary" or (self.positions == "auto" and grid is None):
            return None
        if grid is None:
            raise wrong_value("model.positions", self.positions, "the data are no images; take rotary or auto")
        if self.head_width % 4:
            raise wrong_value(
                "model.head_dim",
                self.head_width,
                "positions by row and column need a multiple of 4; or take model.positions=rotary",
            )
        return grid[1]

    @property
    def key_value_heads(self) -> int:
        """Hkv."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        """D."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def hidden_width(self) -> int:
        """Hidden width of the MLP."""
        if self.mlp_width is not None:
            return self.mlp_width
        return 4 * self.width if self.mlp == "gelu" else -(-8 * self.width // 48) * 16

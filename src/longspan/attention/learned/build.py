"""`attention=learned`: builds the module of each layer and checks its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longspan.attention.errors import wrong_setting
from longspan.attention.learned.budget import Schedule
from longspan.attention.learned.candidates import Candidates
from longspan.attention.learned.module import LearnedAttention
from longspan.values import is_number, is_whole


def learned(
    *,
    density: float = 0.1,
    block_size: int = 64,
    offsets: int | None = None,
    global_blocks: int = 1,
    strides: Sequence[int] = (),
    stride_from: int = 1,
    open_until: float = 0.2,
    reached_at: float = 0.6,
    harden_at: float = 0.75,
    update_every: int = 20,
    closed_below: float = 0.3,
    open_at_most: float = 1.2,
    gate_learning_rate: float | None = None,
    multiplier_rate: float = 30.0,
    seed: int = 0,
    dropout: float = 0.0,
    backend: str = "auto",
    heads: int,
    head_dim: int,
    causal: bool,
    kv_heads: int | None = None,
    layer: int = 0,
    max_length: int | None = None,
) -> LearnedAttention:
    """Per head gates over relative block offsets, global blocks and residue classes, trained to a density.

    Args:
        density: live pairs over T * T at the longest length, at the end.
        block_size, offsets, global_blocks, strides, stride_from: the candidates; see `Candidates`.
        open_until, reached_at, harden_at: shares of the run; see `Schedule`.
        update_every, closed_below, open_at_most, gate_learning_rate, multiplier_rate: see `LearnedAttention`.
        seed, dropout, backend: see `LearnedAttention`.

    Raises:
        ConfigError: a setting that cannot work, by its config key.
    """
    if max_length is None:
        raise wrong_setting("density", f"= {density} needs a known longest sequence; give max_length")
    _number("density", density, 0.0, 1.0, "a share of the T * T pairs, above 0 and at most 1")
    _number("closed_below", closed_below, 0.0, 0.5, "a chance, above 0 and at most 0.5")
    if not is_number(open_at_most, 1.0):
        raise wrong_setting("open_at_most", f"= {open_at_most!r}; give how many times its target may be open, 1.0 or more")
    _number("multiplier_rate", multiplier_rate, 0.0, float("inf"), "a number above 0")
    if gate_learning_rate is not None:
        _number("gate_learning_rate", gate_learning_rate, 0.0, float("inf"), "a number above 0, or null")
    if not is_whole(update_every, 1):
        raise wrong_setting("update_every", f"= {update_every!r}; give a number of steps, 1 or more")
    if isinstance(strides, (str, int)) or not isinstance(strides, Sequence):
        raise wrong_setting("strides", f"= {strides!r} is not a list; give one, such as [128], or [] for none")
    return LearnedAttention(
        Candidates(max_length, causal, block_size, offsets, global_blocks, tuple(strides), stride_from),
        density=density,
        schedule=Schedule(open_until, reached_at, harden_at),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dropout=dropout,
        backend=backend,
        update_every=update_every,
        closed_below=closed_below,
        open_at_most=open_at_most,
        gate_learning_rate=gate_learning_rate,
        multiplier_rate=multiplier_rate,
        seed=seed,
        layer=layer,
    )


def _number(key: str, value: Any, above: float, most: float, meaning: str) -> None:
    if not is_number(value, above, most) or value == above:
        raise wrong_setting(key, f"= {value!r}; give {meaning}")

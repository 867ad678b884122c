"""The keywords that every attention variant hands on to its base class: where it stands in a model, and its backend."""

from __future__ import annotations

from typing import Required, TypedDict

from longspan.attention.errors import wrong_setting


class StatePlace(TypedDict, total=False):
    """Keywords of variants whose weights cannot be dropped; their base class says what they mean."""

    heads: Required[int]
    kv_heads: int | None
    head_dim: Required[int]
    causal: Required[bool]
    layer: int
    max_length: int | None
    backend: str


class Place(StatePlace, total=False):
    """Keywords of all other variants."""

    dropout: float


def check_heads(heads: int, kv_heads: int | None) -> int:
    """The number of key/value heads, which is that of the heads unless given.

    Raises:
        ConfigError: it does not divide the number of heads.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if kv_heads < 1 or heads % kv_heads:
        raise wrong_setting("", f"with {heads} heads cannot share {kv_heads} key/value heads; one must divide the other")
    return kv_heads

"""Learned attention of two small heads."""

import longspan.attention as variants
from longspan.attention import LearnedAttention

PLACE = {"heads": 2, "kv_heads": 1, "head_dim": 16, "causal": True, "layer": 0, "max_length": 100}
SMALL = {"block_size": 16, "global_blocks": 1, "strides": [5], "stride_from": 2, "open_until": 0.0, "update_every": 1}


def made(**given) -> LearnedAttention:
    return variants.learned(**{**PLACE, **SMALL, **given})

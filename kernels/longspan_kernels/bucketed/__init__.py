"""Attention of tokens to those of their bucket, in chunks, over several rounds of bucketing: orders, attention, gradients."""

from longspan_kernels.bucketed.centroids import add_up_buckets, nearest_keys
from longspan_kernels.bucketed.hashing import hash_keys
from longspan_kernels.bucketed.op import bucketed_attention, served
from longspan_kernels.bucketed.options import Buckets
from longspan_kernels.bucketed.reference import bucketed_reference
from longspan_kernels.bucketed.tables import bucket_tables, tile_for

__all__ = [
    "Buckets",
    "add_up_buckets",
    "bucket_tables",
    "bucketed_attention",
    "bucketed_reference",
    "hash_keys",
    "nearest_keys",
    "served",
    "tile_for",
]

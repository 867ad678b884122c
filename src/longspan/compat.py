"""Names that code written for other sparse-attention projects uses, on this project's kernels.

from longspan.compat import SparseAttention, attention_impl, blocksparse_attention_impl
from longspan.compat import from_block_mask, from_deepspeed
"""

from __future__ import annotations

from longspan.integrations.deepspeed import from_deepspeed
from longspan.integrations.flex_attention import from_block_mask
from longspan.integrations.sparse_transformer import SparseAttention, attention_impl, blocksparse_attention_impl

__all__ = ["SparseAttention", "attention_impl", "blocksparse_attention_impl", "from_block_mask", "from_deepspeed"]

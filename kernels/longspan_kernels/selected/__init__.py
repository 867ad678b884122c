"""Attention of each query token to the key blocks that it picked: choice, attention and gradients, on any device.

To be read in this order:

- attention: `reference.py` (the definition), `options.py` and `op.py` (the op and its gradients), `lists.py` (the queries of
  each block), `attend.py` (both passes in plain torch), `tokens.py` (keys that were picked one by one);
- choices: `means.py` and `choose.py` (MoBA), `compress.py` and `importance.py` (NSA), `index.py` (DSA);
- beside it: `merge.py` (disjoint parts), `gates.py` and `mix.py` (gated branches), `balance.py` and `match.py` (Sinkhorn);
- in Triton: `triton/configs.py` (tiles), `triton/launches.py` (the launches of both passes), then
  `triton/forward_kernels.py` and `triton/backward_kernels.py` with the steps of `triton/common.py`.
"""

from longspan_kernels.selected.balance import balance_causally
from longspan_kernels.selected.choose import choose_blocks, choose_scored_blocks
from longspan_kernels.selected.compress import compress_blocks
from longspan_kernels.selected.gates import query_gates
from longspan_kernels.selected.importance import choose_important_blocks
from longspan_kernels.selected.index import choose_tokens
from longspan_kernels.selected.lists import queries_of_blocks
from longspan_kernels.selected.match import match_blocks, queries_so_far
from longspan_kernels.selected.means import block_means
from longspan_kernels.selected.merge import NOTHING, merge_by_lse
from longspan_kernels.selected.mix import gated_sum
from longspan_kernels.selected.op import selected_attention
from longspan_kernels.selected.reference import selected_reference
from longspan_kernels.selected.tokens import attend_to_tokens

__all__ = [
    "NOTHING",
    "attend_to_tokens",
    "balance_causally",
    "block_means",
    "choose_blocks",
    "choose_important_blocks",
    "choose_scored_blocks",
    "choose_tokens",
    "compress_blocks",
    "gated_sum",
    "match_blocks",
    "merge_by_lse",
    "queries_of_blocks",
    "queries_so_far",
    "query_gates",
    "selected_attention",
    "selected_reference",
]

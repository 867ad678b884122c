"""Other projects' names and masks: the same pairs, the same outputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import and_masks, create_block_mask, flex_attention

from longspan import sparse_attention
from longspan.compat import SparseAttention, attention_impl, blocksparse_attention_impl, from_block_mask, from_deepspeed
from longspan.config.errors import CallError
from longspan.patterns import PatternError


def by_mask(q, k, v, heads, live):
    """Dense attention of [B, T, C] by a bool mask [T, T]."""
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~live, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_the_usage_example_runs_as_it_is_written():
    """Each line of it, the first call of `attention_impl` with the parenthesis that it lacks."""
    sparse_attn = SparseAttention(block_size=32)
    B, L, E = 2, 256, 256
    q, k, v = torch.randn(B, L, E), torch.randn(B, L, E), torch.randn(B, L, E)
    output = sparse_attn(q, k, v)
    output_attention = attention_impl(q, k, v, heads=4)
    torch.testing.assert_close(output_attention, attention_impl(q, k, v, heads=4, attn_mode="all"))
    output_blocksparse = blocksparse_attention_impl(q, k, v, heads=4, attn_mode="all", blocksize=32)
    right = by_mask(q, k, v, 4, torch.ones(L, L, dtype=torch.bool).tril())
    for out in (output, output_attention, output_blocksparse):
        torch.testing.assert_close(out.double(), right, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["local", "strided"]), st.integers(1, 40), st.integers(1, 70), st.sampled_from([1, 2, 3]))
def test_modes_are_those_of_the_paper(mode, context, length, heads):
    q, k, v = (torch.randn(1, length, heads * 16) for _ in range(3))
    back = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    live = (back >= 0) & ((back < context) if mode == "local" else (back % context == 0))
    out = SparseAttention(heads, mode, context)(q, k, v)
    torch.testing.assert_close(out.double(), by_mask(q, k, v, heads, live), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"heads": 4, "attn_mode": "fixd"}, "attn_mode='fixd'"),
        ({"heads": 4, "attn_mode": "local"}, "local_attn_ctx=None"),
        ({"heads": 4, "attn_mode": "strided", "local_attn_ctx": 0}, "local_attn_ctx=0"),
        ({"heads": 5, "attn_mode": "all"}, "heads=5"),
        ({"heads": 4, "attn_mode": "all", "blocksize": 0}, "blocksize=0"),
        ({"heads": 4, "attn_mode": "all", "num_verts": 2}, "num_verts=2"),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    x = torch.randn(1, 32, 64)
    with pytest.raises(CallError, match=named.replace("(", r"\(")):
        blocksparse_attention_impl(x, x, x, **arguments)


def test_a_block_size_that_cannot_work_fails_where_it_is_given():
    with pytest.raises(CallError, match="blocksize=-1"):
        SparseAttention(block_size=-1)


def deepspeed_fixed(config, heads, n):
    """DeepSpeed's loops over blocks, a cell at a time."""
    L, G, P = config["num_local_blocks"], config["num_global_blocks"], config.get("num_different_global_patterns", 1)
    one_way, across = config["attention"] == "unidirectional", config.get("horizontal_global_attention", False)
    layout = torch.zeros(heads, n, n, dtype=torch.bool)
    for h in range(heads):
        for row in range(n):
            for col in range(n):
                if row // L == col // L:
                    layout[h, row, col] = True
        first, end = L - (1 + h % P) * G, n - n % L
        starts = list(range(first, end, L)) + ([max(0, min(end + first, n - G))] if end < n else [])
        for s in starts:
            for g in range(s, min(s + G, n)):
                for row in range(n):
                    if not one_way or row >= s:
                        layout[h, row, g] = True
                    if across:
                        layout[h, g, row] = True
    return layout.tril() if one_way else layout


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_deepspeeds_fixed_layouts(data):
    one_way = data.draw(st.booleans())
    local, wide = data.draw(st.sampled_from([(4, 1), (4, 2), (3, 1), (8, 4)]))
    patterns = data.draw(st.integers(1, local // wide))
    heads, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 19))
    config = {
        "mode": "fixed",
        "block": 16,
        "different_layout_per_head": True,
        "num_local_blocks": local,
        "num_global_blocks": wide,
        "num_different_global_patterns": patterns,
        "attention": "unidirectional" if one_way else "bidirectional",
        "horizontal_global_attention": not one_way and data.draw(st.booleans()),
    }
    length = n * 16 - data.draw(st.integers(0, 15))
    mask = from_deepspeed({"sparse_attention": config}, length=length, heads=heads).mask(length, heads=heads)
    right = deepspeed_fixed(config, heads, n).repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :length, :length]
    assert torch.equal(mask, right)


def test_deepspeeds_other_layouts():
    n, T = 12, 192
    blocks = torch.arange(n)
    near = (blocks[:, None] - blocks[None, :]).abs() <= 1

    def table(config):
        return from_deepspeed({"block": 16, **config}, length=T).mask(T)[0, ::16, ::16]

    longformer = near | (blocks[:, None] == 3) | (blocks[None, :] == 3)
    assert torch.equal(table({"mode": "bslongformer", "global_block_indices": [3, 99]}), longformer)
    assert torch.equal(table({"mode": "local_sliding_window"}), near.tril())
    bigbird = table({"mode": "bigbird", "num_random_blocks": 2, "num_global_blocks": 1})
    certain = near | (blocks[:, None] == 0) | (blocks[None, :] == 0)
    assert (
        bool((bigbird | ~certain).all())
        and int((bigbird & ~certain).sum(1).max()) <= 2
        and int(bigbird.sum()) > int(certain.sum())
    )
    variable = {"mode": "variable", "local_window_blocks": [2, 5], "global_block_indices": [0], "global_block_end_indices": [2]}
    window = torch.tensor([0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    assert torch.equal(table(variable), (window[:, None] == window[None, :]) | (blocks[None, :] < 2))
    one_way = {**variable, "attention": "unidirectional", "num_random_blocks": 3}
    assert not bool(table(one_way).triu(1).any())


@pytest.mark.parametrize(
    "config, named",
    [
        ({"mode": "sparse"}, "mode = 'sparse'"),
        ({"mode": "fixed", "num_window": 3}, "num_window = 3"),
        ({"mode": "fixed", "num_global_blocks": 3}, "num_global_blocks = 3"),
        ({"mode": "fixed", "num_different_global_patterns": 2}, "num_different_global_patterns = 2"),
        ({"mode": "bigbird", "block": 0}, "block = 0"),
        ({"mode": "bigbird", "attention": "causal"}, "attention = 'causal'"),
    ],
)
def test_wrong_deepspeed_configs_are_named(config, named):
    with pytest.raises(PatternError, match=named):
        from_deepspeed(config, length=64)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("length, block", [(256, 64), (300, 128), (190, (64, 32))])
def test_block_masks_keep_their_pairs(length, block):
    def window(b, h, i, j):
        return (i - j).abs() <= 40 + 30 * h

    def causal(b, h, i, j):
        return i >= j

    q, k, v = (torch.randn(1, 2, length, 32) for _ in range(3))
    for mask_mod, heads in ((causal, None), (window, 2), (and_masks(window, causal), 2)):
        block_mask = create_block_mask(mask_mod, None, heads, length, length, device="cpu", BLOCK_SIZE=block)
        out = sparse_attention(q, k, v, from_block_mask(block_mask))
        torch.testing.assert_close(out, flex_attention(q, k, v, block_mask=block_mask), atol=1e-5, rtol=1e-5)


def test_block_masks_that_cannot_be_patterns_are_refused():
    def documents(b, h, i, j):
        return (i >= j) & (b >= 0)

    with pytest.raises(PatternError, match="B=2"):
        from_block_mask(create_block_mask(documents, 2, None, 128, 128, device="cpu"))
    with pytest.raises(PatternError, match="128 queries and 256 keys"):
        from_block_mask(create_block_mask(documents, None, None, 128, 256, device="cpu"))

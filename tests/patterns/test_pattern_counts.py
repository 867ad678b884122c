"""Live pairs of long sequences: exact, quick and without T * T memory."""

import time

import pytest
import torch

from longspan.patterns import BigBird, Fixed, Full, Global, Local, Local2D, Longformer, PerHead, Predicate, Random, Strided

torch.set_num_threads(1)
LONG = 65536


def test_full_at_4096():
    assert Full().live_pairs(4096) == 16_777_216
    assert Full().live_pairs(4096, causal=True) == 4096 * 4097 // 2
    assert Full().live_pairs(4096, heads=8) == 8 * 16_777_216
    assert Full().live_pairs(0) == 0


def test_local_by_hand():
    # The first rows of a causal window see 1, 2, ..., window keys.
    assert Local(256).live_pairs(8192, causal=True) == 256 * 8192 - 256 * 255 // 2
    assert Local(256).live_pairs(8192) == 257 * 8192 - 128 * 129
    assert Local(3, 2).live_pairs(5) == 5 + 2 * 3


def test_bigbird_by_hand():
    """Whole blocks at 64 of them: two global rows see all, each of the others sees 8 blocks, fewer beside the globals."""
    blocks = 64
    middle = [{0, blocks - 1} | {row - 1, row, row + 1} for row in range(1, blocks - 1)]
    expected = 2 * blocks + sum(len(seen) + 3 for seen in middle)
    assert BigBird(64, 3, 3, 2).live_pairs(4096, heads=3) == 3 * expected * 64 * 64


@pytest.mark.parametrize(
    "pattern",
    [
        Local(512),
        Local2D(256, 256, 13, 2),
        Strided(128),
        BigBird(),
        Longformer(512, range(64)),
        Fixed(128, 16),
        Random(3, 64),
        Global(first=8),
        Local(128) | Strided(128),
        PerHead([Local(256), BigBird()]),
    ],
    ids=lambda p: p.key[:40],
)
def test_long_counts_take_little_time(pattern):
    start = time.perf_counter()
    pattern.live_pairs(LONG, causal=True)
    assert time.perf_counter() - start < 10.0


def test_a_long_predicate_within_a_window_is_counted_in_the_window():
    def same_document(b, h, q_idx, kv_idx):
        return q_idx // 1000 == kv_idx // 1000

    start = time.perf_counter()
    both = (Local(64) & Predicate(same_document, per_head=False)).live_pairs(LONG, causal=True)
    # A document of 1000 has 64 * 1000 - 64 * 63 / 2 pairs; the last one is shorter.
    documents, rest = divmod(LONG, 1000)
    assert both == documents * (64 * 1000 - 2016) + 64 * rest - 2016
    assert time.perf_counter() - start < 20.0


def test_counts_of_flex_attention_masks():
    """A user's mask_mod means the same here as in FlexAttention."""
    from torch.nn.attention.flex_attention import create_mask

    segments = torch.arange(100) // 23
    bias = torch.tensor([3, 17, 40])

    def documents(b, h, q_idx, kv_idx):
        return (segments[q_idx] == segments[kv_idx]) & (q_idx >= kv_idx)

    def by_head(b, h, q_idx, kv_idx):
        return (q_idx - kv_idx).abs() <= bias[h]

    def keys_only(b, h, q_idx, kv_idx):
        return kv_idx < 7

    for mask_mod in (documents, by_head, keys_only):
        expected = create_mask(mask_mod, 1, 3, 100, 100, device="cpu")[0]
        pattern = Predicate(mask_mod)
        assert pattern.mask(100, heads=3).equal(expected)
        assert pattern.live_pairs(100, heads=3) == int(expected.sum())
        # In a composition the count comes from the layout, whose last tiles hold places without a token.
        assert (pattern | Strided(9)).live_pairs(100, heads=3) == int((pattern | Strided(9)).mask(100, heads=3).sum())

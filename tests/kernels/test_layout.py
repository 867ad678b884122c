"""Layouts hold exactly the pairs of their rule, once, in rows and in columns, without T*T memory."""

import pytest
import torch
from drawn_rules import HEADS, lengths, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.block_sparse import compiler
from longspan_kernels.block_sparse.block_rules import BlockBand, BlockLists, PastBlocks
from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
from longspan_kernels.block_sparse.plane import Neighbourhood
from longspan_kernels.block_sparse.rules import And, Band, Congruent, Everything, Keys, KeysPeriodic, Or, Queries, Rule


def counted(layout, which: str) -> torch.Tensor:
    """How often the layout visits each (head, row, key) as live, rebuilt entry by entry."""
    seen = torch.zeros(layout.heads, layout.q_len, layout.k_len, dtype=torch.int64)
    for c in layout.components:
        rows_of = c.q_index if c.q_index is not None else torch.arange(c.q_blocks * c.block_q) + c.q_start
        keys_of = c.k_index if c.k_index is not None else torch.arange(c.k_blocks * c.block_k) + c.k_start
        lists = getattr(c, which)
        for head, u in enumerate(c.group.tolist()):
            for line in range(lists.start.shape[1] if u >= 0 else 0):
                start, count = int(lists.start[u, line]), int(lists.count[u, line])
                full, band = int(lists.full[u, line]), int(lists.band[u, line])
                for e in range(count):
                    other, kind = int(lists.index[start + e]), int(lists.kind[start + e])
                    assert (kind == -1) == (e < full)
                    assert (kind < c.bands) == (e < full + band)
                    row, column = (line, other) if which == "rows" else (other, line)
                    mask = torch.ones(c.block_q, c.block_k, dtype=torch.bool) if kind < 0 else c.masks[kind]
                    at = mask.nonzero()
                    i = rows_of[row * c.block_q + at[:, 0]].long()
                    j = keys_of[column * c.block_k + at[:, 1]].long()
                    assert (i >= 0).all() and (j >= 0).all()
                    seen[head].index_put_((i, j), torch.ones_like(i), accumulate=True)
    return seen


@settings(max_examples=120, deadline=None)
@given(rules(), lengths(), st.sampled_from([(16, 16), (16, 32), (32, 16)]), st.booleans())
def test_a_layout_visits_each_live_pair_once(rule, shape, blocks, one_pass):
    q_len, k_len = shape
    tiling = Tiling(*blocks, overhead=0, one_pass=one_pass)
    layout = compile_layout([(tuple(range(HEADS)), rule)], q_len, k_len, HEADS, tiling)
    i = torch.arange(q_len)[:, None] + k_len - q_len
    live = torch.stack([rule.live(h, i, torch.arange(k_len)[None]).expand(q_len, k_len) for h in range(HEADS)]).long()
    assert torch.equal(counted(layout, "rows"), live)
    assert torch.equal(counted(layout, "columns"), live)
    assert layout.live_pairs == int(live.sum())
    assert layout.visited_pairs >= layout.live_pairs


@settings(max_examples=60, deadline=None)
@given(rules(), lengths())
def test_band_masks_are_what_their_bounds_say(rule, shape):
    layout = compile_layout([((0, 1), rule)], *shape, HEADS, Tiling(16, 16))
    for c in layout.components:
        m, n = torch.arange(c.block_q)[:, None], torch.arange(c.block_k)[None]
        for mask, (lo, hi, last_m, last_n) in zip(c.masks[: c.bands], c.band[: c.bands].tolist(), strict=True):
            assert torch.equal(mask, (m - n >= lo) & (m - n <= hi) & (m <= last_m) & (n <= last_n))


def test_a_length_that_no_tile_divides_needs_no_stored_masks():
    """So that it is compiled and launched as others are."""
    for rule in (Everything(), Band(0, 40), Band(-20, 20), Congruent(8)):
        layout = compile_layout([((0, 1), rule)], 203, 203, HEADS, Tiling(16, 16, sizes=(16,)))
        for c in layout.components:
            assert len(c.masks) == c.bands, rule


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 70))
def test_packed_bits_unpack(count, a, b):
    from longspan_kernels.block_sparse.compiler import pack_bits

    masks = torch.rand(count, a, b) < 0.5
    words = pack_bits(masks)
    n = torch.arange(b)
    assert torch.equal(((words[:, :, n // 32] >> (n % 32)) & 1).bool(), masks)


def orders(rule, length: int, **tiling) -> list[str]:
    return [c.order for c in compile_layout([((0,), rule)], length, length, 1, Tiling(**tiling)).components]


def test_each_part_takes_the_order_in_which_it_is_cheap():
    causal = Band(0, None)
    assert orders(And(Congruent(128), causal), 4096) == ["residue 128"]
    assert orders(Or(Band(0, 127), And(Congruent(128), causal)), 4096) == ["residue 128", "natural"]
    assert orders(And(Or(BlockBand(128), KeysPeriodic(128, 16)), causal), 4096) == ["keys", "natural"]
    scattered = [(a, a + 1) for a in range(0, 4096, 512)]
    assert orders(Or(Band(-64, 64), Keys(scattered), Queries(scattered)), 4096) == ["keys", "natural", "queries"]
    assert orders(Band(-64, 64), 4096) == ["natural"]
    # A whole block of global keys is as cheap in place, and one component is better than two.
    assert orders(Or(Band(-64, 64), Keys([(0, 64)])), 4096) == ["natural"]


def bigbird(length: int, heads: int, block: int = 64):
    lists = torch.randint(2, length // block - 1, (heads, length // block, 3))
    ends = [(0, block), (length - block, length)]
    return Or(BlockBand(block, -1, 1), Keys(ends), Queries(ends), BlockLists(block, lists))


@pytest.mark.parametrize("name", ["local", "bigbird", "longformer", "local|strided"])
def test_a_million_tokens_need_little_memory_and_few_evaluations(name, monkeypatch):
    length = 1 << 20
    rule = {
        "local": Band(-256, 256),
        "bigbird": bigbird(length, 2),
        "longformer": Or(Band(-256, 256), Keys([(0, 64)]), Queries([(0, 64)])),
        "local|strided": Or(Band(0, 127), And(Congruent(128), Band(0, None))),
    }[name]
    evaluated = 0

    def counted(rule, head, i, j):
        nonlocal evaluated
        evaluated += i.shape[0] * i.shape[1] * j.shape[1]
        return evaluate(rule, head, i, j)

    evaluate = compiler.evaluate_tiles
    monkeypatch.setattr(compiler, "evaluate_tiles", counted)
    layout = compile_layout([((0, 1), rule)], length, length, 2, Tiling(128, 128, sizes=(128,)))
    assert layout.nbytes < 64 << 20
    # At most a tile for each query block and head: gathered global queries next to random blocks have no shorter signature.
    assert evaluated < 1.1 * 2 * 128 * length


def test_masks_are_few_at_any_length():
    for length in (2048, 32768):
        layout = compile_layout([((0,), Or(Band(-256, 256), Keys([(0, 50)])))], length, length, 1, Tiling(128, 128))
        assert sum(len(c.masks) for c in layout.components) <= 12


def test_everything_swallows_the_rest():
    layout = compile_layout([((0,), Or(Everything(), Congruent(3), Band(0, 5)))], 100, 100, 1, Tiling(32, 32))
    assert [c.order for c in layout.components] == ["natural"]
    assert layout.live_pairs == 100 * 100


def test_a_rule_that_forgets_an_answer_cannot_be_made():
    """Compilers ask every rule; one that leaves a question out would be planned by a guess."""

    class Halved(Rule):
        def live(self, h, i, j):
            return j * 2 <= i

        def signature(self, h, i0, j0, q, k):
            return None

    with pytest.raises(TypeError, match=r"band.*orders.*tiles.*traits"):
        Halved()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("height", "width", "reach", "dilation"), [(1, 1, 3, 1), (6, 1, 0, 1), (1, 9, 2, 2), (3, 4, 1, 1)])
def test_a_plane_is_visited_from_before_its_first_row(height, width, reach, dilation, shifted):
    """Where there are more queries than keys, the first queries stand in rows that the grid does not have."""
    rule, q_len, k_len = Neighbourhood(height, width, reach, dilation, shifted), 30, height * width
    layout = compile_layout([((0, 1), rule)], q_len, k_len, HEADS, Tiling(16, 16, sizes=(16,)))
    live = rule.live(0, torch.arange(q_len)[:, None] + k_len - q_len, torch.arange(k_len)[None]).expand(HEADS, q_len, k_len)
    assert torch.equal(counted(layout, "rows"), live.long()) and torch.equal(counted(layout, "columns"), live.long())


def test_a_few_bands_among_other_masks_get_no_loop_of_their_own():
    staircase = compile_layout([((0,), PastBlocks(16, 31, 255 - 4096))], 4096, 255, 1, Tiling(64, 64)).components[0]
    assert len(staircase.masks) > 8 and staircase.bands == 0
    window = compile_layout([((0,), Band(0, 100))], 1024, 1024, 1, Tiling(64, 64)).components[0]
    assert window.bands == len(window.masks) > 0

"""Neighbours in an image: the mask beside loops and beside NATTEN's as FlexAttention has it, and what the kernels visit."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from longspan import sparse_attention
from longspan.attention import local2d
from longspan.attention.named import variant_named
from longspan.benchmark.cases import Case, named
from longspan.benchmark.mask_mods import mask_mod_of
from longspan.benchmark.suites import suite
from longspan.config.errors import BenchmarkError, ConfigError
from longspan.patterns import Full, Global, Local, Local2D, PatternError, Strided
from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
from longspan_kernels.block_sparse.plane import tile_shape

torch.set_num_threads(1)


def seen(query: int, size: int, window: int, dilation: int, shifted: bool) -> list[int]:
    """The coordinates that a query sees in one direction, by walking."""
    residue = [x for x in range(size) if x % dilation == query % dilation]
    place, reach = residue.index(query), window // 2
    first = place - reach
    if shifted:
        first = min(max(first, 0), len(residue) - 2 * reach - 1)
    return [residue[p] for p in range(first, first + 2 * reach + 1) if 0 <= p < len(residue)]


@st.composite
def grids(draw) -> Local2D:
    height, width, window = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 7))
    dilation, edges = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from(["cut", "shift"]))
    fits = (2 * (window // 2) + 1) * dilation <= min(height, width)
    return Local2D(height, width, window, dilation, edges if fits else "cut")


@settings(max_examples=80, deadline=None)
@given(grids(), st.booleans(), st.data())
def test_the_mask_is_what_walking_finds_and_the_count_is_the_masks(pattern, causal, data):
    H, W = pattern.height, pattern.width
    length = data.draw(st.sampled_from([H * W, data.draw(st.integers(1, H * W))]))
    mask = pattern.mask(length, causal=causal)[0]
    arguments = pattern.window, pattern.dilation, pattern.edges == "shift"
    for i in range(length):
        rows, columns = seen(i // W, H, *arguments), seen(i % W, W, *arguments)
        keys = {r * W + c for r, c in itertools.product(rows, columns)}
        assert mask[i].nonzero().flatten().tolist() == sorted(j for j in keys if j < length and (j <= i or not causal))
    assert pattern.live_pairs(length, causal=causal) == int(mask.sum())


@settings(max_examples=60, deadline=None)
@given(grids(), st.booleans(), st.sampled_from([16, 32, 64]), st.data())
def test_layouts_hold_the_pairs_of_the_mask(pattern, causal, size, data):
    k_len = data.draw(st.integers(1, pattern.height * pattern.width))
    q_len = data.draw(st.integers(1, k_len))
    layout = compile_layout(pattern.head_rules(q_len, k_len, 1, causal), q_len, k_len, 1, Tiling(size, size, sizes=(size,)))
    assert layout.live_pairs == int(pattern.mask(q_len, k_len, causal=causal).sum())


def natten(height: int, width: int, kernel: int, dilation: int):
    """The mask of neighbourhood attention as a FlexAttention user writes it: a centre that stays inside, by residue."""

    def near(q, k, size):
        places = (size - 1 - q % dilation) // dilation + 1
        centre = torch.clamp(q // dilation, min=kernel // 2)
        centre = torch.minimum(centre, places - 1 - kernel // 2)
        return (q % dilation == k % dilation) & (torch.abs(centre - k // dilation) <= kernel // 2)

    return lambda b, h, q, k: near(q // width, k // width, height) & near(q % width, k % width, width)


@pytest.mark.parametrize(
    ("height", "width", "kernel", "dilation"), [(9, 9, 5, 1), (7, 12, 7, 1), (13, 10, 3, 3), (16, 16, 13, 1)]
)
def test_natten_as_flex_attention_has_it(height, width, kernel, dilation):
    T = height * width
    expected = create_mask(natten(height, width, kernel, dilation), 1, 1, T, T, device="cpu")[0]
    pattern = Local2D(height, width, kernel, dilation, edges="shift")
    assert pattern.mask(T).equal(expected)
    assert pattern.live_pairs(T) == T * kernel * kernel  # every query has as many keys


@settings(max_examples=30, deadline=None)
@given(grids())
def test_the_peers_mask_is_the_patterns(pattern):
    T = pattern.height * pattern.width
    mod, per_head = mask_mod_of(Case("drawn", pattern, False, T, 1, 16), "cpu")
    assert not per_head and create_mask(mod, 1, 1, T, T, device="cpu")[0].equal(pattern.mask(T))


def test_the_suite_of_images_asks_for_square_ones():
    plans = suite("image")
    assert {plan.case.length for plan in plans} == {16384, 65536} and all("flex" in plan.sides for plan in plans)
    assert named("natten 13", 16384, 4)[0] == Local2D(128, 128, 13, edges="shift")
    with pytest.raises(BenchmarkError, match="16000 is no square"):
        named("natten 13", 16000, 4)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("edges", ["cut", "shift"])
def test_a_neighbourhood_does_not_visit_whole_rows(dilation, edges):
    """13 x 13 in 128 x 128 tokens, tiles of 64: 24 x 24 keys a query, where consecutive ones take 13 whole rows of 128."""
    pattern, T = Local2D(128, 128, 13, dilation, edges), 16384
    layout = compile_layout(pattern.head_rules(T, T, 1, False), T, T, 1, Tiling())
    assert [c.order for c in layout.components] == ["plane"]
    assert layout.live_pairs == pattern.live_pairs(T)
    assert layout.visited_pairs <= 576 * T and layout.visited_pairs < 3.4 * layout.live_pairs
    assert layout.nbytes < 1 << 20
    in_order = compile_layout(pattern.head_rules(T, T, 1, False), T, T, 1, Tiling(one_pass=True))
    assert in_order.visited_pairs > 2.8 * layout.visited_pairs


def test_tiles_fit_what_there_is():
    assert [tile_shape(64, *sides) for sides in ((128, 128), (2, 128), (128, 3), (1, 1))] == [(8, 8), (2, 32), (16, 4), (1, 64)]
    row, column = Local2D(1, 4096, 13), Local2D(4096, 1, 13)
    for pattern in (row, column):  # an image of one row is a sequence
        assert pattern.live_pairs(4096) == Local(13).live_pairs(4096) and pattern.mask(300).equal(Local(13).mask(300))


PATTERNS = {
    "cut": Local2D(11, 13, 5),
    "shifted": Local2D(11, 13, 5, edges="shift"),
    "dilated": Local2D(11, 13, 3, 3),
    "beside global": Local2D(11, 13, 5) | Global(first=2),
    "beside strided": Local2D(11, 13, 3) | Strided(13),
    "within": Local2D(11, 13, 9) & Local(40),
    "two": Local2D(11, 13, 3) | Local2D(11, 13, 5, 2),
}


@pytest.mark.parametrize("backend", ["blocked", "triton"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_outputs_and_gradients_are_those_of_the_definition(name, causal, backend, monkeypatch):
    if backend == "triton":
        if torch.cuda.is_available():
            pytest.skip("tests/gpu runs the compiled kernels")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        if causal and name not in ("cut", "two"):
            pytest.skip("interpreted kernels are slow")
    T, g = 143, torch.Generator().manual_seed(1)
    dtype = torch.float32 if backend == "triton" else torch.float64
    q, k, v, weight = (torch.randn(1, h, T, 16, generator=g, dtype=dtype) for h in (2, 1, 1, 2))
    outs = []
    for chosen in (backend, "dense"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out, lse = sparse_attention(*leaves, PATTERNS[name], causal=causal, backend=chosen, return_lse=True)
        outs.append([out, lse, *torch.autograd.grad((out * weight).sum() + lse.sum(), leaves)])
    for a, b in zip(*outs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 if backend == "triton" else 1e-9, rtol=1e-4)


def test_attention_local2d():
    place = {"heads": 2, "head_dim": 16, "causal": False}
    assert local2d(window=5, max_length=144, **place).pattern == Local2D(12, 12, 5)
    assert local2d(window=5, max_length=130, **place).pattern == Local2D(12, 12, 5)  # the smallest square that holds it
    assert local2d(window=5, max_length=130, grid=(10, 13), **place).pattern == Local2D(10, 13, 5)
    assert local2d(window=3, edges="shift", height=9, width=8, **place).pattern == Local2D(9, 8, 3, edges="shift")
    for settings_, said in (
        ({}, "attention.height = None, and the length is not known"),
        ({"height": 3}, "attention.width = None, and the other side"),
        ({"height": 3, "width": 4, "max_length": 13}, "attention.height = 3 and attention.width = 4 have 12 places"),
        ({"height": 3, "width": 4, "grid": (4, 3)}, "but the images have 4 rows of 3 tokens"),
        ({"window": 0, "max_length": 16}, "attention.window = 0"),
        ({"height": 0, "width": 4, "max_length": 16}, "attention.height = 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            local2d(**settings_, **place)


def test_variants_made_of_others_pass_the_grid_on():
    place = {"heads": 4, "head_dim": 16, "causal": False, "max_length": 130, "grid": (10, 13)}
    wanted = Local2D(10, 13, 13)
    assert variant_named("hybrid", "")(layers=["full", "local2d"], layer=1, **place).pattern == wanted
    per_head = variant_named("per_head", "")(patterns=["local2d", "full"], **place).pattern
    assert [per_head.at_head(h, 4) for h in (0, 3)] == [wanted, Full()]
    mixed = variant_named("mixed_heads", "")(parts=["local2d", "full"], **place)
    assert mixed.parts[0].pattern == wanted


def test_decoding_keeps_the_rows_that_are_still_seen():
    module = local2d(window=3, height=6, width=7, heads=2, head_dim=16, causal=True)
    q, k, v = (torch.randn(1, 2, 42, 16, generator=torch.Generator().manual_seed(2)) for _ in range(3))
    whole, cache = module(q, k, v), module.new_cache(1, dtype=torch.float32)
    parts = [module.decode(*(x[:, :, a:b] for x in (q, k, v)), cache) for a, b in ((0, 5), (5, 6), (6, 20), (20, 42))]
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-5, rtol=1e-5)


def test_a_longer_sequence_than_the_grid_is_refused():
    q = torch.randn(1, 1, 17, 16)
    with pytest.raises(PatternError, match="4, 4 have 16 places for 17 tokens"):
        sparse_attention(q, q, q, Local2D(4, 4, 3), backend="blocked")

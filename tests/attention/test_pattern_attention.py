"""Pattern-based variants: their configs, their outputs against dense attention, their cost, their errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

import longspan.attention as variants
from longspan.attention import PatternAttention
from longspan.attention.block_table import log_sparse_table
from longspan.attention.named import variant_named, variant_names
from longspan.config.errors import ConfigError
from longspan.parameters import parameters
from longspan.patterns import BigBird, BlockTable, Full, Global, Local, Longformer, PerHead, Predicate, Random, Strided

torch.set_num_threads(1)
CONF = Path(__file__).parents[2] / "conf" / "attention"
NAMED = {name: variant_named(name, "") for name in variant_names()}
OURS = [name for name, made in NAMED.items() if isinstance(made, type) and issubclass(made, PatternAttention)]
PLACE = {"heads": 4, "kv_heads": 2, "head_dim": 16, "causal": True, "layer": 0, "max_length": 200}


def configured(name, **settings):
    config = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), settings)
    return instantiate(config)


def tensors(length, heads=4, kv_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, n, length, 16, generator=generator, requires_grad=True) for n in (heads, kv_heads, kv_heads)]


def dense(q, k, v, mask):
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("name", OURS)
def test_the_config_holds_every_setting_at_its_default(name):
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    target = get_object(config.pop("_target_"))
    assert config.pop("_partial_") is True
    settings = {k: p.default for k, p in parameters(target).items() if k not in {*PLACE, "grid"}}
    assert config == {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    first = (CONF / f"{name}.yaml").read_text().splitlines()
    assert f"python train.py attention={name}" in first[0] and "arXiv:" in first[1]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("causal", [False, True])
def test_outputs_and_gradients_are_those_of_dense_attention(name, causal):
    length = 150
    module = configured(name)(**PLACE | {"causal": causal})
    assert isinstance(module, PatternAttention) and list(module.parameters()) == []
    q, k, v = tensors(length)
    mask = module.pattern.mask(length, heads=4, causal=causal)
    expected = dense(q, k, v, mask).masked_fill(~mask.any(-1)[None, :, :, None], 0.0)
    out = module(q, k, v)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)
    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, (q, k, v), grad)
    theirs = torch.autograd.grad(expected.nan_to_num(), (q, k, v), grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.nan_to_num(), atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("name", OURS)
def test_cost_counts_the_mask(name):
    module = configured(name)(**PLACE)
    cost = module.cost(150)
    assert cost.live_pairs == int(module.pattern.mask(150, heads=4, causal=True).sum())
    assert cost.visited_pairs >= cost.live_pairs > 0
    assert cost.attention_flops_live == 64 * cost.live_pairs and cost.attention_flops == 64 * cost.visited_pairs
    assert cost.parameters == cost.other_flops == 0
    assert module.cost(150) is cost and module.cost(0).visited_pairs == 0


def test_counted_cost_is_the_same_on_every_machine(monkeypatch):
    counts = set()
    for on_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        for backend in ("auto", "triton", "blocked", "dense"):
            for dtype in (torch.float32, torch.bfloat16):
                module = PatternAttention(Strided(128), heads=4, head_dim=16, causal=True, backend=backend).to(dtype)
                cost = module.cost(4096)
                counts.add((cost.live_pairs, cost.visited_pairs, cost.attention_flops))
    assert counts == {(4 * 67584, 4 * 131072, 64 * 4 * 131072)}


@pytest.mark.parametrize("backend", ["triton", "blocked", "dense"])
def test_counted_cost_does_not_ask_for_the_device(backend, monkeypatch):
    def refuse(*_):
        raise AssertionError("a counted cost asked for this machine's device")

    monkeypatch.setattr(torch.cuda, "is_available", refuse)
    counted = variants.bigbird(block_size=16, backend=backend, **PLACE).cost(200)
    assert counted == variants.bigbird(block_size=16, **PLACE).cost(200)


def test_what_ran_is_told_beside_what_is_counted():
    here = torch.float32, torch.device("cpu")
    assert variants.local(window=8, backend="dense", **PLACE).ran(2, 100, *here) == ("dense", 4 * 100 * 100)
    blocked = variants.local(window=8, backend="blocked", **PLACE)
    assert blocked.ran(2, 100, *here) == ("blocked", blocked.cost(100).visited_pairs)
    assert variants.local(window=8, **PLACE).ran(2, 100, *here) == ("dense", 4 * 5050)  # short: all pairs up to the diagonal
    assert variants.full(**PLACE).ran(1, 4096, *here)[0] == "dense"
    assert variants.local(window=64, **PLACE).ran(1, 16384, *here)[0] == "blocked"


def test_patterns_of_the_settings():
    assert variants.full(**PLACE).pattern == Full()
    assert variants.local(window=9, **PLACE).pattern == Local(9)
    assert variants.strided(stride=9, window=None, **PLACE).pattern == Strided(9)
    assert variants.strided(stride=9, window=4, **PLACE).pattern == Local(4) | Strided(9)
    assert variants.global_(first=None, positions=[3, 4], **PLACE).pattern == Global(positions=(3, 4))
    assert variants.longformer(window=9, global_positions=[1], **PLACE).pattern == Longformer(9, (1,))
    assert variants.dilated(window=9, dilation=3, dilated_heads=1, **PLACE).pattern == PerHead([Local(9)] * 3 + [Local(9, 3)])
    assert variants.dilated(window=9, dilation=3, dilated_heads=4, **PLACE).pattern == Local(9, 3)


def test_layers_draw_differently():
    place = PLACE | {"layer": 5}
    assert variants.random(blocks=2, block_size=16, seed=1, **place).pattern == Random(2, 16, 6)
    assert variants.bigbird(seed=1, **place).pattern == BigBird(seed=6)


def test_heads_divide_evenly():
    wanted = ["local", {"name": "strided", "stride": 7, "window": 0}, "full"]
    pattern = configured("per_head", patterns=wanted)(**PLACE | {"heads": 8}).pattern
    assert list(pattern.patterns) == [Local(256)] * 3 + [Strided(7)] * 3 + [Full()] * 2
    nested = variants.per_head(patterns=["full", {"name": "dilated", "window": 5}], **PLACE | {"heads": 8}).pattern
    assert list(nested.patterns[4:]) == [Local(5), Local(5), Local(5, 4), Local(5, 4)]


def test_tables_are_read_from_files(tmp_path):
    table = log_sparse_table(7)
    assert table[3].tolist() == [False, True, True, True, True, True, False]
    np.save(tmp_path / "t.npy", table.numpy())
    torch.save(table, tmp_path / "t.pt")
    np.savetxt(tmp_path / "t.csv", table.int().numpy(), fmt="%d", delimiter=",")
    for source in [*(str(tmp_path / f"t.{suffix}") for suffix in ("npy", "pt", "csv")), table.int().tolist()]:
        assert configured("block_table", table=source, block_size=32)(**PLACE).pattern == BlockTable(table, 32)


def test_dropout_falls_in_training_only():
    module = variants.local(window=64, dropout=0.5, **PLACE)
    q, k, v = tensors(60)
    plain = variants.local(window=64, **PLACE)(q, k, v)
    assert not module.train()(q, k, v).equal(plain)
    assert module.eval()(q, k, v).equal(plain)


def test_lengths_and_segments_reach_the_kernel():
    module = variants.bigbird(block_size=16, **PLACE | {"causal": False})
    q, k, v = tensors(60)
    lengths = torch.tensor([60, 23])
    out = module(q, k, v, lengths=lengths)
    assert out[1, :, 23:].abs().max() == 0 and out[1, :, :23].abs().min() > 0
    segments = (torch.arange(60) // 20).expand(2, 60)
    mask = module.pattern.mask(60, heads=4) & (segments[0][:, None] == segments[0][None, :])
    torch.testing.assert_close(module(q, k, v, segments=segments), dense(q, k, v, mask), atol=2e-5, rtol=2e-5)


def test_compiles_without_breaks_and_once_for_all_lengths():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    module = variants.bigbird(block_size=16, **PLACE)
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    for length in (40, 70, 101):
        q, k, v = tensors(length)
        assert compiled(q, k, v).equal(module(q, k, v))
    assert counter.frame_count == 1


def test_a_state_dict_and_a_copy():
    import copy

    module = copy.deepcopy(variants.bigbird(**PLACE))
    assert module.state_dict() == {} and module.pattern == BigBird()


WRONG = [
    (lambda: variants.bigbird(block_size=0, **PLACE), r"attention\.block_size = 0"),
    (lambda: variants.bigbird(window_blocks=4, **PLACE), r"attention\.window_blocks = 4 is even"),
    (lambda: variants.local(window="wide", **PLACE), r"attention\.window = 'wide'"),
    (lambda: variants.local(dropout=1.0, **PLACE), r"attention\.dropout = 1.0"),
    (lambda: variants.local(backend="cuda", **PLACE), r"attention\.backend = 'cuda' is unknown; choose one of auto"),
    (lambda: variants.fixed(stride=4, summary=9, **PLACE), r"attention\.summary = 9 is more than stride = 4"),
    (lambda: variants.global_(first=3, positions=[1], **PLACE), r"attention\.first = 3 and attention.positions = \[1\]"),
    (lambda: variants.global_(first=None, **PLACE), r"attention\.first neither is given"),
    (lambda: variants.longformer(global_positions=3, **PLACE), r"attention\.global_positions = 3"),
    (lambda: variants.dilated(dilated_heads=9, **PLACE), r"attention\.dilated_heads = 9; give 0 to 4"),
    (lambda: variants.full(**PLACE | {"kv_heads": 3}), r"4 heads cannot share 3"),
    (lambda: variants.block_table(table="nowhere.npy", **PLACE), r"attention\.table = nowhere.npy is not a file"),
    (lambda: variants.block_table(table=__file__, **PLACE), r"attention\.table .* suffix '.py'"),
    (lambda: variants.block_table(table=[[1, 0], [1]], **PLACE), r"attention\.table .*equal rows"),
    (
        lambda: variants.block_table(table=[[1]], block_size=64, **PLACE),
        r"attention\.table of shape \(1, 1\) is too small",
    ),
    (lambda: variants.block_table(block_size=0, **PLACE), r"attention\.block_size = 0"),
    (lambda: variants.per_head(patterns="local", **PLACE), r"attention\.patterns = 'local' is not a list"),
    (lambda: variants.per_head(patterns=["locl"], **PLACE), r"attention\.patterns\[0\] = 'locl' .*Did you mean local"),
    (lambda: variants.per_head(patterns=["full"] * 5, **PLACE), r"attention\.patterns holds 5 patterns for 4 heads"),
    (
        lambda: variants.per_head(patterns=["full", {"name": "local", "windw": 3}], **PLACE),
        r"attention\.patterns\[1\]\.windw is not a setting of local. Did you mean window",
    ),
    (
        lambda: variants.per_head(patterns=[{"name": "local", "window": 0}], **PLACE),
        r"attention\.patterns\[0\]\.window = 0",
    ),
    (lambda: variants.per_head(patterns=["moba"], **PLACE), r"attention\.patterns\[0\] = 'moba' is not one pattern"),
    (lambda: PatternAttention(PerHead([Full()] * 2), heads=4, head_dim=16, causal=True), r"attention\.patterns holds 2"),
]


@pytest.mark.parametrize(("build", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_settings_name_their_config_key(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_pattern_of_the_users_own():
    pattern = Predicate(lambda b, h, q_idx, kv_idx: (q_idx + kv_idx + h) % 3 == 0) | Local(3)
    module = PatternAttention(pattern, heads=4, kv_heads=2, head_dim=16, causal=False)
    q, k, v = tensors(50)
    torch.testing.assert_close(module(q, k, v), dense(q, k, v, pattern.mask(50, heads=4)), atol=2e-5, rtol=2e-5)

"""Learned patterns out of records, beside windows of equal density."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from warm_process import run

from longspan.attention import learned
from longspan.benchmark.hardened import at_random, equal_window, measure, of_record
from longspan.config.errors import BenchmarkError
from longspan.patterns import Local
from longspan.records import Record

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "reports" / "learned_needle" / "records"
SETTINGS = {"block_size": 16, "offsets": None, "global_blocks": 1, "strides": [5], "stride_from": 2}


def hardened(seed=0, causal=True):
    """A module hardened with gates drawn at random, and the record that a run with it would leave."""
    module = learned(heads=2, head_dim=16, causal=causal, max_length=128, density=0.2, **SETTINGS)
    with torch.no_grad():
        module.log_alpha.copy_(torch.randn(module.log_alpha.shape, generator=torch.Generator().manual_seed(seed)) * 4)
    module.harden()
    config = {"attention": SETTINGS, "data": {"max_length": 128}, "task": {"causal": causal}}
    told = {"learned_pattern": {"connections": [module.gate_table()]}}
    return module, Record(status="complete", started=datetime(2026, 1, 1, tzinfo=UTC), config=config, extra=told)


@pytest.mark.parametrize("causal", [True, False])
def test_a_record_gives_the_pattern_of_its_run(causal):
    module, record = hardened(causal=causal)
    (pattern,) = of_record(record, 128, "it").patterns(2)
    assert torch.equal(pattern.mask(128, heads=2, causal=causal), module.pattern.mask(128, heads=2, causal=causal))
    assert pattern.mask(128, heads=2, causal=causal).any()
    (repeated,) = of_record(record, 128, "it").patterns(4)
    mask = module.pattern.mask(128, heads=2, causal=causal)
    assert torch.equal(repeated.mask(128, heads=4, causal=causal), torch.cat([mask, mask]))


def test_stretched_blocks_keep_the_density_and_own_blocks_the_distances():
    record = Record.load(RECORDS / "learned-seed0" / "record.json")
    final = record.extra["learned_pattern"]["final_density"]
    stretched = of_record(record, 8192, "it", stretch=True)
    live = [pattern.live_pairs(8192, heads=2, causal=True) for pattern in stretched.patterns(2)]
    # pairs of whole blocks keep their share; the diagonal's blocks are halved, a token's worth apart
    assert sum(live) / 4 / 8192**2 == pytest.approx(final, rel=0.01)
    own = of_record(record, 4096, "it").patterns(2)[0].mask(4096, heads=2, causal=True)[0]
    names = record.extra["learned_pattern"]["connections"][0][0]["open"]
    offsets = {int(name.removeprefix("offset ")) for name in names if name.startswith("offset")}
    blocks = {63} if "global 0" in names else set()  # as far from the last query as can be
    assert len(offsets) > 2 and {int(d) for d in torch.unique((4095 - own[-1].nonzero()[:, 0]) // 64)} == offsets | blocks


def test_a_window_of_equal_density_and_gates_at_random():
    assert equal_window(Local(77).live_pairs(512, heads=3, causal=True), 512, 3, True) == Local(77)
    found = at_random(1024, 3, 0.1)
    assert ((found.layers[0] * found.candidates.pairs(1024)).sum(1) / 1024**2 > 0.08).all()
    assert found.patterns(3)[0].live_pairs(1024, heads=3, causal=True) <= 0.1 * 3 * 1024**2
    assert len({tuple(row.tolist()) for row in found.layers[0]}) == 3


def test_what_does_not_fit_is_named():
    record = Record.load(RECORDS / "learned-seed0" / "record.json")
    with pytest.raises(BenchmarkError, match="it: 1024 tokens have no gate 'offset 21'; give at least 2048 tokens"):
        of_record(record, 1024, "it")
    with pytest.raises(BenchmarkError, match="3000 tokens are no multiple of the 2048"):
        of_record(record, 3000, "it", stretch=True)
    with pytest.raises(BenchmarkError, match="3 heads are no multiple of the 2 that were trained"):
        of_record(record, 2048, "it").patterns(3)
    with pytest.raises(BenchmarkError, match="holds no learned connections"):
        of_record(Record.load(RECORDS / "full-seed0" / "record.json"), 2048, "full")


def test_layers_are_timed_beside_the_window():
    _, record = hardened()
    rows = measure([of_record(record, 128, "it")], device="cpu", heads=2, head_dim=16, dtype=torch.float32, seconds=0.01)
    (row,) = rows
    layer, window = row["sides"].values()
    assert row["density"] == layer["density"] <= window["density"] < layer["density"] + 1 / 128
    for kind in ("forward", "both"):
        assert row[f"ratio_{kind}"] == pytest.approx(layer[kind]["ms"] / window[kind]["ms"])


def test_the_script_keeps_what_it_measured(tmp_path):
    words = [RECORDS / "learned-seed0", "--length", "2048", "--device", "cpu", "--heads", "2", "--head-dim", "16"]
    words += ["--seconds", "0.01", "--densities", "0.1", "-o", tmp_path / "times.json"]
    done = run(ROOT / "scripts" / "hardened_attention.py", *words)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "times.json").read_text())
    assert [row["learned"] for row in kept["rows"]] == ["learned-seed0", "at random, density 0.1"]
    assert kept["versions"]["torch"] and len(kept["rows"][0]["sides"]) == 3

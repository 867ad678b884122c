"""Peers that are not here say so, and those that are here are asked for the same attention."""

import sys

import flash_attention_4
import pytest
import torch

from longspan.benchmark import peers
from longspan.benchmark.cases import Case
from longspan.benchmark.compare import compare
from longspan.config.errors import BenchmarkError
from longspan.patterns import Full, Local, Strided

LENGTH = 24


def case(pattern, causal):
    return Case("a case", pattern, causal, LENGTH, 2, 16, dtype=torch.float32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", [Full(), Local(5), Local(6)], ids=str)
def test_flash_attention_4_is_asked_for_the_pattern(monkeypatch, pattern, causal):
    flash_attention_4.install(monkeypatch)
    one = case(pattern, causal)
    q, k, v = one.inputs("cpu")
    ours, theirs = peers.longspan(one, "cpu")(q, k, v), peers.fa4(one, "cuda")(q, k, v)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("pattern", [Strided(4), Local(5, dilation=2)], ids=str)
def test_flash_attention_4_is_not_asked_for_what_it_has_no_flag_for(monkeypatch, pattern):
    flash_attention_4.install(monkeypatch)
    with pytest.raises(BenchmarkError, match="full, causal and windowed attention alone"):
        peers.fa4(case(pattern, True), "cuda")


@pytest.mark.parametrize("peer", ["fa4", "flex-flash"])
def test_flash_attention_4_that_is_not_installed_is_named(monkeypatch, peer):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(BenchmarkError, match="flash-attn-4 is not installed"):
        peers.find(peer)(case(Full(), True), "cuda")


def test_a_row_names_its_best_peer_and_why_others_are_missing():
    row = compare(case(Full(), True), ("longspan", "longspan-dense", "sdpa", "fa4"), "cpu", seconds=0.01, memory=False)
    assert "needs a CUDA device" in row["sides"]["fa4"]["unavailable"]
    assert row["best_peer"] == min(("longspan-dense", "sdpa"), key=lambda name: row["sides"][name]["both"]["ms"])

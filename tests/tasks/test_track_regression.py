"""Numbers along sequences: figures against scipy, heads against loops, both strands, a run that learns and is loaded."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import published_tracks as files
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config.compose import config_for
from longspan.config.errors import CallError, ConfigError
from longspan.data import NUCLEOTIDES
from longspan.models import transformer
from longspan.models.track_heads import in_bins
from longspan.tasks import ContactRegression, TrackRegression, build_task
from longspan.tasks.track_metrics import SequencePearson, StratumCorrelation, TrackPearson

PAIRED = torch.from_numpy(NUCLEOTIDES.complement)


def pearson(a, b):
    return 0.0 if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0 else scipy.stats.pearsonr(a, b).statistic


def drawn(seed, sequences, bins, tracks, holes):
    """Numbers [B, n, K], a track that never changes among them, and right ones with holes."""
    rng = np.random.default_rng(seed)
    said, right = rng.gamma(0.5, size=(2, sequences, bins, tracks)).astype(np.float32)
    right += said * 0.5
    if tracks > 2:
        right[..., -1] = 3.0
    right[rng.random(right.shape) < holes] = np.nan
    return said, right


def updated(metric, said, right):
    for part in np.array_split(np.arange(len(said)), 2):
        if len(part):
            metric.update(torch.from_numpy(said[part]), torch.from_numpy(right[part]))
    return float(metric.compute())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.0, 0.3]))
def test_pearson_by_track_and_by_sequence(seed, sequences, bins, tracks, holes):
    said, right = drawn(seed, sequences, bins, tracks, holes)
    known = ~np.isnan(right)

    def of(columns, change=lambda values: values):
        return pearson(*(change(v[..., columns][known[..., columns]].astype(float)) for v in (said, right)))

    wanted = np.mean([of([track]) for track in range(tracks)])
    assert updated(TrackPearson(tracks), said, right) == pytest.approx(wanted, abs=1e-5)
    pooled = TrackPearson(tracks, [list(range(tracks))], [True] * tracks)
    counts = of(list(range(tracks)), lambda x: np.log10(10**x - 1 + 0.1))
    assert updated(pooled, said, right) == pytest.approx(counts, abs=1e-4)
    rows = [pearson(s[k].astype(float), r[k].astype(float)) for s, r, k in zip(said, right, known, strict=True) if k.any()]
    assert updated(SequencePearson(), said, right) == pytest.approx(np.mean(rows or [0.0]), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(3, 12), st.integers(1, 2), st.sampled_from([0.0, 0.2]))
def test_stratum_adjusted_correlation(seed, bins, tracks, holes):
    first, second = np.triu_indices(bins, 2)
    said, right = drawn(seed, 3, len(first), tracks, holes)
    said[0, second - first == 2] = 1.0  # says nothing about one stratum
    maps = []
    for s, r in zip(said.swapaxes(1, 2).reshape(-1, len(first)), right.swapaxes(1, 2).reshape(-1, len(first)), strict=True):
        total = weight = 0.0
        for apart in range(2, bins):
            own = (second - first == apart) & ~np.isnan(r)
            if own.sum() > 1 and np.ptp(r[own]) > 0:
                n = own.sum()
                total += n * (1 - 1 / n**2) / 12 * pearson(s[own].astype(float), r[own].astype(float))
                weight += n * (1 - 1 / n**2) / 12
        maps += [total / weight] if weight else []
    assert updated(StratumCorrelation(bins), said, right) == pytest.approx(np.mean(maps or [0.0]), abs=1e-4)


def data_of(bins, tracks=2, **facts):
    known = {"pooled": None, "counts": None, "swap": None, "target_mean": [0.5] * tracks}
    known |= {"tracks": [f"t{n}" for n in range(tracks)], "vocab_size": NUCLEOTIDES.size, "vocabulary": NUCLEOTIDES}
    return SimpleNamespace(bins=SimpleNamespace(**bins), max_length=20, **{**known, **facts})


def made(kind, sdpa, data, **settings):
    torch.manual_seed(0)
    model = partial(transformer, layers=1, width=32, heads=2, **settings.pop("sizes", {}))
    task = build_task(partial(kind, **settings), model=model, attention=sdpa, data=data)
    for weight in task.model.head.projection.parameters():
        torch.nn.init.normal_(weight)
    return task.eval()


TOKENS = torch.randint(4, (2, 20), generator=torch.Generator().manual_seed(1))
BINS = {"size": 3, "held": 4, "margin": 4}


@pytest.mark.parametrize("strands", [None, "shared"])
def test_bins_and_pairs_are_read_where_they_lie(strands, sdpa):
    sizes = {"reverse_complement": strands}
    task = made(TrackRegression, sdpa, data_of(BINS), loss="mse", sizes=sizes)
    maps = made(ContactRegression, sdpa, data_of(BINS), sizes=sizes)
    with torch.no_grad():
        hidden = task.hidden({"tokens": TOKENS})
        halves = hidden.chunk(2, -1) if strands else (hidden,)
        bins = [torch.stack([half[:, 4 + 3 * n : 7 + 3 * n].mean(1) for n in range(4)], 1) for half in halves]
        wanted = sum(task.model.head.projection(half) for half in bins) / len(bins)
        torch.testing.assert_close(task.read({"tokens": TOKENS}), wanted)
        got = maps.read({"tokens": TOKENS})
        head, hidden = maps.model.head, maps.hidden({"tokens": TOKENS})
        pairs = []
        for a, b in ((0, 2), (0, 3), (1, 3)):
            said = []
            for half in hidden.chunk(2, -1) if strands else (hidden,):
                # the second first: a pair has no order
                (fb, tb), (fa, ta) = (head.projections(half[:, 4 + 3 * n : 7 + 3 * n].mean(1)).chunk(2, -1) for n in (b, a))
                vector = fb * fa + tb + ta + head.distance.weight[b - a]
                said.append(head.projection(F.gelu(head.norm(vector), approximate="tanh")))
            pairs.append(sum(said) / len(said))
        torch.testing.assert_close(got, torch.stack(pairs, 1), rtol=1e-4, atol=1e-5)
    assert task.model.head.cost(20).other_flops == (2 if strands else 1) * 2 * 4 * 32 * 2
    with pytest.raises(CallError, match="tokens are 12 long, but 4 bins of 3 after the first 4 end at 16"):
        in_bins(torch.zeros(1, 12, 8), 3, 4, 4)


@pytest.mark.parametrize("kind", [TrackRegression, ContactRegression])
def test_the_mean_over_strands(kind, sdpa):
    swap = [1, 0] if kind is TrackRegression else None
    task = made(kind, sdpa, data_of(BINS, swap=swap), average_strands=True, loss="mse")
    plain = made(kind, sdpa, data_of(BINS, swap=swap), loss="mse")
    with torch.no_grad():
        got = task.predict_step({"tokens": TOKENS}, 0)["values"]
        this, other = (plain.read({"tokens": tokens}) for tokens in (TOKENS, PAIRED[TOKENS].flip(1)))
    # pairs are (0, 2), (0, 3), (1, 3): of bins read backwards the last comes first too
    other = other.flip(1) if swap is None else other.flip(1)[..., swap]
    assert not torch.allclose(this, other, atol=0.05), "strands differ"
    torch.testing.assert_close(got, (this + other) / 2, rtol=1e-4, atol=1e-5)


def test_losses_of_what_is_known(sdpa):
    labels = torch.rand(2, 4, 2) * 3
    labels[0, 1] = float("nan")
    batch, known = {"tokens": TOKENS, "labels": labels}, ~labels.isnan()
    task = made(TrackRegression, sdpa, data_of(BINS))
    step = task.step(batch, 0, "val")
    said = task.read(batch)
    nll = F.poisson_nll_loss(said[known], labels[known], log_input=False)
    best = F.poisson_nll_loss(labels[known], labels[known], log_input=False)
    torch.testing.assert_close(step.loss, nll - best, rtol=1e-3, atol=1e-4)
    assert step.count == known.sum() == 14
    step.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in task.parameters() if p.grad is not None)
    mse = made(TrackRegression, sdpa, data_of(BINS), loss="mse")
    torch.testing.assert_close(
        mse.step(batch, 0, "val").loss, F.mse_loss(mse.read(batch)[known], labels[known]), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ConfigError, match=r"task.loss='poisson': a target is -1, below 0; take task.loss=mse"):
        task.step({"tokens": TOKENS, "labels": torch.full((2, 4, 2), -1.0)}, 0, "train")
    with pytest.raises(CallError, match=r"labels must be \[2, 4, 2\]; got \[2, 4, 3\]"):
        task.step({"tokens": TOKENS, "labels": torch.zeros(2, 4, 3)}, 0, "train")


@pytest.mark.parametrize("mean", [0.0, 1e-3, 2.0, 50.0])
def test_nothing_learned_says_the_mean(mean, sdpa):
    torch.manual_seed(0)
    model = partial(transformer, layers=1, width=32, heads=2)
    task = build_task(TrackRegression, model=model, attention=sdpa, data=data_of(BINS, target_mean=[mean, 1.0]))
    torch.nn.init.zeros_(task.model.head.projection.weight)
    said = task.read({"tokens": TOKENS}).detach()
    torch.testing.assert_close(said[..., 0], torch.full((2, 4), max(mean, 1e-6)), rtol=1e-3, atol=1e-6)


def test_a_run_learns_and_is_loaded(tmp_path, monkeypatch):
    from longspan import load
    from longspan.training.run import run

    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    path = files.activity(tmp_path / "files", each=6)
    small = ["model.layers=1", "model.width=32", "model.heads=2", "attention=local", "attention.window=9", "model.stem=null"]
    words = [
        *("experiment=dnalongbench_activity", f"data.path={path}", "data.max_length=40", "data.batch_size=6", *small),
        *("task.loss=mse", "trainer.max_steps=60", "trainer.val_check_interval=30", "optimizer.lr=1e-2"),
        *("logger=none", "callbacks.progress=null", "trainer.accelerator=cpu"),
    ]
    run(config_for(words, tmp_path / "run", Path(__file__).parents[2] / "conf"))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    figures = {name.removeprefix("test/"): figure for name, figure in record["accuracy"].items()}
    assert record["status"] == "complete" and figures["pearson"]["baseline"] == 0.0
    assert figures["pearson"]["value"] > 0.5 and figures["mse"]["value"] < 0.05
    model = load(next((tmp_path / "run" / "checkpoints").glob("*.ckpt")))
    sequence = files.bases(5, 40)
    rows = model.predict([sequence], names=["s"])
    assert [(row["id"], row["start"], row["end"]) for row in rows] == [("s", 8 + 4 * n, 12 + 4 * n) for n in range(6)]
    shares = files.one_hot(sequence)[8:32].reshape(6, 4, 4).mean(1)[:, :3]
    said = np.array([[row[str(track)] for track in range(3)] for row in rows])
    assert pearson(said.ravel(), shares.ravel()) > 0.5

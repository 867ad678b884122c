"""Metrics against scikit-learn, over batches, over ranks, and where classes are absent."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from longspan.tasks.metrics import BitsPerToken, MacroAUROC, Perplexity, Share, label_metrics, matthews

CLASSES = 4


def sample(seed: int, size: int, classes: int = CLASSES):
    random = np.random.default_rng(seed)
    scores = random.dirichlet(np.ones(CLASSES), size)
    return scores, random.integers(0, classes, size)


@given(seed=st.integers(0, 10_000), size=st.integers(1, 60), present=st.integers(1, CLASSES))
@settings(max_examples=40, deadline=None)
def test_single_labels_as_scikit_learn_has_them(seed, size, present):
    scores, truth = sample(seed, size, present)  # classes from `present` on are absent
    said = scores.argmax(1)
    ours = label_metrics(CLASSES, multi_label=False)
    for part in np.array_split(np.arange(size), 3):
        if len(part):
            ours.update(torch.tensor(said[part]), torch.tensor(truth[part]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": sk.accuracy_score(truth, said),
            "macro_f1": sk.f1_score(truth, said, average="macro"),
            "mcc": sk.matthews_corrcoef(truth, said),
        }
    assert {name: value.item() for name, value in ours.compute().items()} == pytest.approx(expected, abs=1e-5)


@given(seed=st.integers(0, 10_000), size=st.integers(2, 60), absent=st.booleans())
@settings(max_examples=40, deadline=None)
def test_multiple_labels_as_scikit_learn_has_them(seed, size, absent):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, (size, CLASSES))
    said = random.integers(0, 2, (size, CLASSES))
    if absent:
        truth[:, 0] = 0
    varied = [k for k in range(CLASSES) if 0 < truth[:, k].sum() < size]
    ours = label_metrics(CLASSES, multi_label=True)
    ours.update(torch.tensor(said), torch.tensor(truth))
    expected = {
        "accuracy": (truth == said).mean(),
        "macro_f1": sk.f1_score(truth, said, average="macro", zero_division=0),
        "micro_f1": sk.f1_score(truth, said, average="micro", zero_division=0),
        "mcc": np.mean([sk.matthews_corrcoef(truth[:, k], said[:, k]) for k in varied]) if varied else 0.0,
    }
    assert {name: value.item() for name, value in ours.compute().items()} == pytest.approx(expected, abs=1e-5)


@given(seed=st.integers(0, 10_000), size=st.integers(8, 80))
@settings(max_examples=30, deadline=None)
def test_auroc_as_scikit_learn_has_it(seed, size):
    scores, truth = sample(seed, size)
    one_hot = np.eye(CLASSES)[truth]
    drawn = [k for k in range(CLASSES) if 0 < one_hot[:, k].sum() < size]
    expected = np.mean([sk.roc_auc_score(one_hot[:, k], scores[:, k]) for k in drawn]) if drawn else 0.5
    ours = MacroAUROC()
    for part in np.array_split(np.arange(size), 2):
        ours.update(torch.tensor(scores[part]), torch.tensor(truth[part]))
    assert ours.compute().item() == pytest.approx(expected, abs=1e-5)


def test_constant_answers_have_no_correlation():
    truth = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]])
    metric = label_metrics(2, multi_label=True)["mcc"]
    metric.update(torch.tensor([[1, 0]]).expand(4, -1), truth)
    assert metric.compute() == 0.0


def test_auroc_of_absent_classes_is_left_out():
    truth, scores = torch.tensor([0, 0, 1, 1]), torch.tensor([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.1, 0.9, 0]])
    metric = MacroAUROC()
    metric.update(scores, truth)
    assert metric.compute() == 1.0  # of class 2 nothing can be said
    metric.reset()
    metric.update(scores[:2], truth[:2])
    assert metric.compute() == 0.5


def test_matthews_holds_at_genome_size():
    confusion = torch.tensor([[2_000_000_000, 1_999_990_000], [1_999_995_000, 2_000_000_000]])
    tn, fp, fn, tp = (int(count) for count in confusion.flatten())
    exact = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(confusion).item() == pytest.approx(exact, rel=1e-4)


def test_token_losses_weigh_tokens_alike_however_batched():
    nats = torch.rand(100)
    bits, perplexity = BitsPerToken(), Perplexity()
    for part in nats.split([1, 60, 39]):
        bits.update(part.sum(), torch.tensor(len(part)))
        perplexity.update(part.sum(), torch.tensor(len(part)))
    assert bits.compute().item() == pytest.approx(nats.mean().item() / math.log(2))
    assert perplexity.compute().item() == pytest.approx(math.exp(nats.mean().item()))


def test_shares():
    share = Share()
    share.update(torch.tensor(3), torch.tensor(4))
    share.update(torch.tensor(0), torch.tensor(4))
    assert share.compute().item() == pytest.approx(3 / 8)


def _rank(rank: int, world: int, address: str, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    scores, truth = sample(0, 31)
    mine = slice(0, 7) if rank == 0 else slice(7, None)  # ranks of different sizes, classes missing in the smaller
    labels, auroc, bits = label_metrics(CLASSES, multi_label=False), MacroAUROC(), BitsPerToken()
    labels.update(torch.tensor(scores[mine].argmax(1)), torch.tensor(truth[mine]))
    auroc.update(torch.tensor(scores[mine]), torch.tensor(truth[mine]))
    bits.update(torch.tensor(float(rank + 1)), torch.tensor(10 * (rank + 1)))
    found = {name: value.item() for name, value in labels.compute().items()}
    results[rank] = {**found, "macro_auroc": auroc.compute().item(), "bits": bits.compute().item()}
    torch.distributed.destroy_process_group()


def test_metrics_are_those_of_all_ranks_together(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        address = f"file://{tmp_path}/ranks"
        workers = [context.Process(target=_rank, args=(rank, 2, address, results)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        results = dict(results)
    scores, truth = sample(0, 31)
    said = scores.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(truth, said),
        "macro_f1": sk.f1_score(truth, said, average="macro"),
        "mcc": sk.matthews_corrcoef(truth, said),
        "macro_auroc": sk.roc_auc_score(truth, scores, multi_class="ovr"),
        "bits": 3 / 30 / math.log(2),
    }
    for rank in range(2):
        assert results[rank] == pytest.approx(expected, abs=1e-5)

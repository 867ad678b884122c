"""Baselines that ignore the input: counts of symbols, and constant answers.

Legend: V symbols, N items, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from longspan.data.corpus import WindowDataset

AT_ONCE = 1_000_000  # symbols: bounds the memory of int64 pairs, whatever the data's size


def _pairs(data: WindowDataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(symbol before, symbol) of every predicted place, in int64, those of many windows at a time."""
    tokens = data.corpus.tokens
    document, start, length = data.windows.T
    begins, counts = data.corpus.offsets[document] + start, np.maximum(length - 1, 0)
    cuts = np.searchsorted(counts.cumsum(), np.arange(AT_ONCE, counts.sum(), AT_ONCE))
    for begin, count in zip(np.split(begins, cuts), np.split(counts, cuts), strict=True):
        at = np.arange(count.sum()) + np.repeat(begin - count.cumsum() + count, count)
        yield tokens[at].astype(np.int64), tokens[at + 1].astype(np.int64)


def _counts(data: WindowDataset, size: int) -> np.ndarray:
    """How often symbol j follows symbol i, [V, V]."""
    total = np.zeros(size * size, dtype=np.int64)
    for before, after in _pairs(data):
        total += np.bincount(before * size + after, minlength=size * size)
    return total.reshape(size, size)


def language_baselines(train: WindowDataset, data: WindowDataset, size: int, symbols: int) -> dict[str, float]:
    """Bits a symbol of the training split's unigram and bigram counts (add one) on `data`'s predicted symbols.

    `size` token ids, of which the first `symbols` can be predicted. "bits_per_byte" and "perplexity" are the
    unigram's, "accuracy" that of always saying the commonest symbol; "bits_per_byte_bigram" the bigram's.
    """
    learned, seen = _counts(train, size), _counts(data, size)
    unigram = learned.sum(axis=0)[:symbols] + 1.0
    unigram /= unigram.sum()
    bigram = learned[:, :symbols] + 1.0
    bigram /= bigram.sum(axis=1, keepdims=True)
    wanted = seen[:, :symbols]
    total = max(int(wanted.sum()), 1)
    bits = float(-(wanted.sum(axis=0) * np.log2(unigram)).sum() / total)
    bits_bigram = float(-(wanted * np.log2(bigram)).sum() / total)
    return {
        "bits_per_byte": bits,
        "perplexity": 2.0**bits,
        "accuracy": float(wanted.sum(axis=0)[unigram.argmax()] / total),
        "bits_per_byte_bigram": bits_bigram,
    }


def token_baselines(train: WindowDataset, data: WindowDataset, size: int) -> dict[str, float]:
    """The unigram's scores where tokens stand for several bytes: `size` ids, counts of the training split with one added."""

    def counts(of: WindowDataset) -> np.ndarray:
        total = np.zeros(size, dtype=np.int64)
        for _, after in _pairs(of):
            total += np.bincount(after, minlength=size)
        return total

    learned, seen = counts(train), counts(data)
    unigram = (learned + 1.0) / (learned + 1.0).sum()
    total = max(int(seen.sum()), 1)
    bits = float(-(seen * np.log2(unigram)).sum())
    return {
        "bits_per_byte": bits / max(data.byte_count, 1),
        "bits_per_token": bits / total,
        "perplexity": 2.0 ** (bits / total),
        "accuracy": float(seen[unigram.argmax()] / total),
    }


def class_baselines(train_counts: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Scores of always answering the training split's commonest class, from [K] counts of each split.

    Macro-F1 is averaged over the classes that occur, as the tasks do; AUROC of a constant is 1/2, MCC 0.
    """
    total = max(int(counts.sum()), 1)
    answer = int(train_counts.argmax())
    share = float(counts[answer] / total)
    present = (counts > 0) | (np.arange(len(counts)) == answer)
    f1 = 2 * share / (1 + share)
    return {
        "accuracy": share,
        "macro_f1": f1 / max(int(present.sum()), 1),
        "micro_f1": share,
        "macro_auroc": 0.5,
        "mcc": 0.0,
    }


def label_baselines(train: np.ndarray, data: np.ndarray) -> dict[str, float]:
    """Scores of constant answers to multi-label data, 0/1 arrays [N, K].

    Accuracy (over all labels) is that of each label's majority in the training split. F1 is that of always saying
    "yes" to every label, the best constant where F1 counts: the majority's own is mostly 0, and easily beaten.
    """
    said = train.mean(axis=0) > 0.5
    share = data.mean(axis=0)
    held = data.sum()
    return {
        "accuracy": float(np.where(said, share, 1 - share).mean()),
        "macro_f1": float((2 * share / (1 + share)).mean()),
        "micro_f1": float(2 * held / (held + data.size)) if held else 0.0,
        "macro_auroc": 0.5,
        "mcc": 0.0,
    }

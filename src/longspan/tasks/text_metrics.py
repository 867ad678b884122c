"""Metrics of texts, by sacrebleu and rouge-score: what they need is kept as sums, so that ranks add up to a corpus.

BLEU is that of the corpus; ROUGE and exact match are means over texts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

TEXT_METRICS = ("bleu", "exact_match", "rouge1", "rouge2", "rougeL")


class Bleu(Metric):
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002), as sacrebleu counts it (arXiv:1804.08771)."""

    full_state_update = False
    higher_is_better = True
    counts: Tensor
    sizes: Tensor

    def __init__(self, tokenize: str = "13a", **arguments: Any) -> None:
        super().__init__(**arguments)
        from sacrebleu.metrics import BLEU

        logging.getLogger("sacrebleu").setLevel(logging.ERROR)  # it warns of texts that end in a blank and a full stop
        self.library = BLEU(tokenize=tokenize)
        order = self.library.max_ngram_order
        self.add_state("counts", torch.zeros((2, order), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sizes", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        score = self.library.corpus_score(list(hypotheses), [list(references)])
        self.counts += torch.tensor([score.counts, score.totals], dtype=torch.float64, device=self.counts.device)
        self.sizes += torch.tensor([score.sys_len, score.ref_len], dtype=torch.float64, device=self.sizes.device)

    def compute(self) -> Tensor:
        found, possible = (row.long().tolist() for row in self.counts)
        made, wanted = self.sizes.long().tolist()
        score = self.library.compute_bleu(found, possible, made, wanted, smooth_method="exp")
        return torch.tensor(score.score, dtype=torch.float32)


class MeanOfTexts(Metric):
    """The mean of a number a text."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    texts: Tensor

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("texts", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def of(self, hypothesis: str, reference: str) -> float:
        """The score of one text."""
        raise NotImplementedError(f"{type(self).__name__} defines no of(hypothesis, reference)")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        self.total += sum(self.of(*pair) for pair in zip(hypotheses, references, strict=True))
        self.texts += len(hypotheses)

    def compute(self) -> Tensor:
        return (self.total / self.texts.clamp(min=1)).float()


class ExactMatch(MeanOfTexts):
    """Share of texts that are the reference, blanks around them aside."""

    def of(self, hypothesis: str, reference: str) -> float:
        return float(hypothesis.strip() == reference.strip())


class Rouge(MeanOfTexts):
    """ROUGE F, 0 to 1 (Lin 2004), of one kind, such as rougeL."""

    def __init__(self, kind: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer

        self.kind, self.scorer = kind, RougeScorer([kind], tokenizer=DefaultTokenizer(use_stemmer=False))

    def of(self, hypothesis: str, reference: str) -> float:
        return float(self.scorer.score(reference, hypothesis)[self.kind].fmeasure)


class AverageLagging(MeanOfTexts):
    """Source tokens that a streamed target lags behind one that goes evenly with its source (arXiv:1810.08398, equation 8)."""

    higher_is_better = False

    def update(self, reads: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:  # type: ignore[override]
        """Source tokens read before each target token, and the length of each source."""
        for read, length in zip(reads, lengths, strict=True):
            if len(read):
                self.total += average_lagging(read, length)
                self.texts += 1


def average_lagging(reads: Sequence[int], source: int) -> float:
    """Of one target: `reads` source tokens before each of its tokens, of `source` in all."""
    rate = len(reads) / source  # target tokens a source token
    counted = next((number for number, read in enumerate(reads, start=1) if read >= source), len(reads))
    return sum(read - number / rate for number, read in enumerate(reads[:counted])) / counted


def text_metric(name: str, bleu_tokenize: str = "13a") -> Metric:
    """The metric of that name, one of `TEXT_METRICS`."""
    if name == "bleu":
        return Bleu(bleu_tokenize)
    return ExactMatch() if name == "exact_match" else Rouge(name)

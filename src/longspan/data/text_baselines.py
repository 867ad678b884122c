"""Scores of texts that took no learning, by the same libraries that score a model's."""

from __future__ import annotations

import logging
from collections.abc import Sequence


def text_scores(metrics: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """{metric: score} of a corpus: "bleu" 0 to 100, "exact_match" and "rouge..." 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer
    from sacrebleu.metrics import BLEU

    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    scores: dict[str, float] = {}
    rouge = [name for name in metrics if name.startswith("rouge")]
    if rouge:
        scorer = RougeScorer(rouge, tokenizer=DefaultTokenizer(use_stemmer=False))
        found = [scorer.score(reference, said) for said, reference in zip(hypotheses, references, strict=True)]
        scores = {name: sum(one[name].fmeasure for one in found) / len(found) for name in rouge}
    if "bleu" in metrics:
        scores["bleu"] = BLEU().corpus_score(list(hypotheses), [list(references)]).score
    if "exact_match" in metrics:
        same = sum(said.strip() == reference.strip() for said, reference in zip(hypotheses, references, strict=True))
        scores["exact_match"] = same / len(references)
    return scores

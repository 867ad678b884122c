"""Metrics of texts: batches add up to what the libraries say of a corpus, and average lagging as its paper defines it."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from longspan.data.text_baselines import text_scores
from longspan.tasks.text_metrics import TEXT_METRICS, AverageLagging, average_lagging, text_metric

SAID = ["the cat sat on the mat", "a dog", "", "one two three four five six", "the the the"]
RIGHT = ["the cat sat on a mat", "a dog", "nothing", "one two three five six", "the end of it"]


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_batches_add_up_to_the_corpus(cut):
    found = {}
    for name in TEXT_METRICS:
        metric = text_metric(name)
        for first in range(0, len(SAID), cut):
            metric.update(SAID[first : first + cut], RIGHT[first : first + cut])
        found[name] = float(metric.compute())
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(SAID, [RIGHT]).score, rel=1e-5)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for kind in ("rouge1", "rouge2", "rougeL"):
        each = [scorer.score(right, said)[kind].fmeasure for said, right in zip(SAID, RIGHT, strict=True)]
        assert found[kind] == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert found["exact_match"] == pytest.approx(1 / 5)
    assert text_scores(TEXT_METRICS, SAID, RIGHT) == pytest.approx(found, rel=1e-5)


def test_average_lagging():
    # wait-k on equal lengths lags k behind; reading everything first lags the whole source (STACL, section 4)
    for k in (1, 3, 7):
        assert average_lagging([min(k + t, 9) for t in range(9)], 9) == pytest.approx(k)
    assert average_lagging([9] * 9, 9) == 9
    # twice as many target tokens as source tokens, one of which is read every second one: it lags by one or by less
    assert average_lagging([1, 1, 2, 2, 3, 3], 3) == pytest.approx((1 + 0.5 + 1 + 0.5 + 1) / 5)
    metric = AverageLagging()
    metric.update([[9] * 9, []], [9, 4])
    metric.update([[min(3 + t, 9) for t in range(9)]], [9])
    assert float(metric.compute()) == pytest.approx(6)

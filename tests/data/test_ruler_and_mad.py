"""RULER's and MAD's tasks: the answers follow from what stands before the question, found again by reading the sequence."""

import numpy as np
import pytest

from longspan.config.errors import ConfigError
from longspan.data import (
    CommonWordsDataModule,
    CompressionDataModule,
    DistractedNeedleDataModule,
    InContextRecallDataModule,
    MemorisationDataModule,
    VariableTrackingDataModule,
)
from longspan.data.batches import IGNORED

SIZES = {"max_train_windows": 6, "max_validation_windows": 4, "max_test_windows": 40, "batch_size": 2}


def read(module):
    """(names of the tokens, {place: name of the answer}, {place: distance}) of each test sequence."""
    module.setup()
    names = [*module.symbols.names, *["special"] * 4]
    for n in range(len(module.split("test"))):
        item = module.split("test")[n]
        due = np.flatnonzero(item["labels"] != IGNORED)
        yield (
            [names[t] for t in item["tokens"]],
            {int(p): names[item["labels"][p]] for p in due},
            {int(p): int(item["distances"][p]) for p in due},
        )


def check_distances(tokens, answers, distances):
    for place, answer in answers.items():
        assert tokens[place - distances[place]] == answer and distances[place] > 0


def test_the_needle_that_is_asked_for_among_others():
    module = DistractedNeedleDataModule(needles=5, values_a_key=3, max_length=64, **SIZES)
    for tokens, answers, distances in read(module):
        check_distances(tokens, answers, distances)
        (first, *_) = sorted(answers)
        body = tokens[:first]
        keys = [p for p, t in enumerate(body) if t[0] == "k"]
        assert len(keys) == 5 and len({body[p] for p in keys}) == 5
        asked = next(p for p in keys if body[p] == tokens[first])
        assert list(answers.values()) == body[asked + 1 : asked + 4] and len(answers) == 3


def test_variables_are_traced_through_their_assignments():
    module = VariableTrackingDataModule(chains=3, hops=2, max_length=80, **SIZES)
    for tokens, answers, distances in read(module):
        check_distances(tokens, answers, distances)
        value_of = {}
        for p in range(len(tokens) - 2):
            if tokens[p + 1] == "=0":
                value_of[tokens[p]] = value_of.get(tokens[p + 2], tokens[p + 2])
        assert len(value_of) == 9 and set(value_of.values()) == {t for t in value_of.values() if t[0] == "v"}
        question = tokens.index("?0")
        assert list(answers.values()) == [name for name, value in value_of.items() if value == tokens[question + 1]]


def test_the_commonest_words():
    module = CommonWordsDataModule(common=3, often=6, seldom=2, words=64, max_length=64, **SIZES)
    for tokens, answers, distances in read(module):
        check_distances(tokens, answers, distances)
        body = tokens[: min(answers)]
        counts = sorted(((body.count(word), word) for word in set(body)), reverse=True)
        assert [count for count, _ in counts[:3]] == [6, 6, 6] and counts[3][0] <= 2
        assert list(answers.values()) == sorted((word for _, word in counts[:3]), key=lambda w: int(w[1:]))


@pytest.mark.parametrize(
    "settings",
    [{}, {"noise": 0.3}, {"key_tokens": 2, "value_tokens": 3, "keys": 2, "values": 2}],
    ids=["plain", "noisy", "fuzzy"],
)
def test_in_context_recall(settings):
    module = InContextRecallDataModule(max_length=60, **SIZES, **settings)
    a, b = module.key_tokens, module.value_tokens
    for tokens, answers, distances in read(module):
        known, expected, p = {}, {}, 0
        while p < len(tokens):
            if tokens[p][0] != "k":
                p += 1
                continue
            key, value = tuple(tokens[p : p + a]), tokens[p + a : p + a + b]
            if key in known:
                assert known[key] == value
                expected |= {p + a - 1 + m: value[m] for m in range(b)}
            known[key] = value
            p += a + b
        assert answers == expected and answers
        check_distances(tokens, answers, distances)
    if settings.get("noise"):
        assert sum(t[0] == "f" for t in tokens) >= 0.29 * 60


def test_memorised_facts_are_the_same_everywhere_and_never_shown():
    facts = {}
    for seed in (0, 1):
        for tokens, answers, _ in read(MemorisationDataModule(keys=16, values=8, max_length=12, seed=seed, **SIZES)):
            assert not any(t[0] == "v" for t in tokens) and len(answers) == 6
            for place, answer in answers.items():
                assert facts.setdefault(tokens[place], answer) == answer
    assert len(facts) == 16 and len(set(facts.values())) > 2


def test_compression_asks_for_all_tokens_but_the_last():
    for tokens, answers, _ in read(CompressionDataModule(max_length=9, **SIZES)):
        assert tokens[-1] == "c0" and [answers[p] for p in range(8)] == tokens[:8]


def test_what_does_not_fit_is_said():
    for make, key in (
        (lambda: DistractedNeedleDataModule(needles=40, keys=64, max_length=64), "needles"),
        (lambda: DistractedNeedleDataModule(needles=4, keys=3), "keys"),
        (lambda: VariableTrackingDataModule(chains=9, hops=9, variables=100, max_length=64), "chains"),
        (lambda: VariableTrackingDataModule(chains=9, hops=9, variables=80), "variables"),
        (lambda: CommonWordsDataModule(often=3, seldom=3), "seldom"),
        (lambda: CommonWordsDataModule(words=8), "words"),
        (lambda: InContextRecallDataModule(noise=1.0), "noise"),
        (lambda: InContextRecallDataModule(max_length=3), "max_length"),
    ):
        with pytest.raises(ConfigError, match=rf"data\.{key}="):
            make()

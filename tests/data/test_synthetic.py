"""Diagnostics: every question has its answer where it says, at a distance within bounds; draws belong to sequences."""

import json
import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longspan.config.errors import ConfigError
from longspan.data import AssociativeRecallDataModule, InductionDataModule, NeedleDataModule, SelectiveCopyDataModule
from longspan.data.loader import EvaluationSampler, ResumableLoader
from longspan.data.synthetic.draws import Draws
from longspan.data.synthetic.examples import StreamSampler, SyntheticDataset, stack
from longspan.data.synthetic.symbols import SymbolVocabulary

MODULES = [AssociativeRecallDataModule, InductionDataModule, SelectiveCopyDataModule, NeedleDataModule]
quick = settings(max_examples=40, deadline=None)


def drawn(module, rows=3, split="train"):
    return module.make(Draws(7, split, range(rows)))


def asked(examples):
    """(row, place, answer, place of the answer) of every question."""
    for row, place in np.argwhere(examples.labels != -100):
        yield row, place, examples.labels[row, place], place - examples.distances[row, place]


def check_answers(module, examples):
    """Every answer stands where its distance says, no question's answer is where it is asked, padding is nowhere."""
    assert examples.tokens.min() >= 0 and examples.tokens.max() < len(module.symbols.names)
    assert ((examples.distances > 0) == (examples.labels != -100)).all()
    for row, _, answer, at in asked(examples):
        assert examples.tokens[row, at] == answer


def made(kind, **arguments):
    """The data module, or no example where the settings do not fit."""
    try:
        return kind(**arguments)
    except ConfigError:
        assume(False)


lengths = st.integers(16, 90)
reaches = st.one_of(st.integers(1, 60), st.floats(0.05, 0.9))


@quick
@given(
    lengths,
    st.integers(1, 12),
    st.none() | st.integers(1, 20),
    reaches,
    st.none() | reaches,
    st.sampled_from(["uniform", "log"]),
)
def test_associative_recall(length, pairs, questions, distance, farthest, spread):
    module = made(
        AssociativeRecallDataModule,
        max_length=length,
        pairs=pairs,
        questions=questions,
        distance=distance,
        max_distance=farthest,
        spread=spread,
        keys=13,
        values=5,
    )
    examples = drawn(module)
    check_answers(module, examples)
    told = module.describe()
    keys, values = examples.tokens[:, : 2 * pairs : 2], examples.tokens[:, 1 : 2 * pairs : 2]
    for row in range(3):
        paired = dict(zip(keys[row], values[row], strict=True))
        assert len(paired) == pairs
        questions_here = [place for r, place, *_ in asked(examples) if r == row]
        assert len(questions_here) == told["questions"] == (questions or pairs)
        seen = [examples.tokens[row, place] for place in questions_here]
        assert all(examples.labels[row, place] == paired[key] for place, key in zip(questions_here, seen, strict=True))
        counts = [seen.count(key) for key in paired]
        assert max(counts) - min(counts) <= 1  # each pair as often as the others
        later = examples.tokens[row, 2 * pairs :]
        assert np.isin(later, keys[row]).sum() == len(questions_here)
        assert not (np.isin(later[1:], keys[row]) & np.isin(later[:-1], keys[row])).any()  # a filler after each
    distances = examples.distances[examples.labels != -100]
    assert told["distance"] <= distances.min() and distances.max() <= told["max_distance"]


@quick
@given(lengths, st.integers(2, 20), st.none() | st.integers(1, 20), reaches, st.none() | reaches)
def test_induction(length, run, questions, distance, farthest):
    module = made(
        InductionDataModule,
        max_length=length,
        run=run,
        questions=questions,
        distance=distance,
        max_distance=farthest,
        symbols=21,
        fillers=3,
    )
    examples = drawn(module)
    check_answers(module, examples)
    for row, place, answer, at in asked(examples):
        first = examples.tokens[row].tolist().index(examples.tokens[row, place])
        assert first + 1 == at < run and examples.tokens[row, first + 1] == answer
    distances = examples.distances[examples.labels != -100]
    told = module.describe()
    assert told["distance"] <= distances.min() and distances.max() <= told["max_distance"]


@quick
@given(lengths, st.integers(1, 20), reaches, st.none() | reaches)
def test_selective_copy(length, copies, distance, farthest):
    module = made(SelectiveCopyDataModule, max_length=length, copies=copies, distance=distance, max_distance=farthest)
    examples = drawn(module)
    check_answers(module, examples)
    for row in range(3):
        content = [token for token in examples.tokens[row] if module.symbols.names[token].startswith("v")]
        assert content == examples.labels[row, -copies:].tolist() and (examples.labels[row, :-copies] == -100).all()
    distances = examples.distances[:, -copies:]
    told = module.describe()
    assert told["distance"] <= distances.min() and distances.max() <= told["max_distance"]


@quick
@given(lengths, st.integers(1, 6), reaches, st.none() | reaches)
def test_needle(length, needles, distance, farthest):
    module = made(NeedleDataModule, max_length=length, needles=needles, distance=distance, max_distance=farthest)
    examples = drawn(module, rows=8)
    check_answers(module, examples)
    told = module.describe()
    for row in range(8):
        distances = {int(d) for d in examples.distances[row] if d}
        assert len(distances) == 1 and told["distance"] <= distances.pop() <= told["max_distance"]
        assert (examples.labels[row] != -100).sum() == needles
    for row, place, _, at in asked(examples):
        assert examples.tokens[row, at - 1] == examples.tokens[row, place]  # the needle's key is what is asked


def test_needles_stand_anywhere_and_at_any_of_the_distances():
    module = NeedleDataModule(max_length=64, distance=5, max_distance=40)
    examples = drawn(module, rows=800)
    assert set(examples.distances[examples.distances > 0]) == set(range(5, 41))
    assert {place for _, place, *_ in asked(examples)} >= set(range(10, 64))


def test_needles_stand_at_each_of_the_distances_named():
    module = NeedleDataModule(max_length=64, distances=[48, 6, 0.25], needles=2)
    examples = drawn(module, rows=600)
    check_answers(module, examples)
    found, counts = np.unique(examples.distances[examples.distances > 0], return_counts=True)
    assert list(found) == [6, 16, 48] and counts.min() > 300  # 400 expected of each
    assert module.describe()["distances"] == [48, 6, 16] and module.describe()["max_distance"] == 48


@pytest.mark.parametrize("kind", MODULES)
def test_a_sequence_is_a_function_of_seed_split_and_number(kind):
    module = kind(batch_size=4)
    data = module.split("train")
    together = stack(data.__getitems__([3, 900, 3]))
    alone = stack([data[3], pickle.loads(pickle.dumps(data))[900], data[3]])
    assert all(torch.equal(together[name], alone[name]) for name in together)
    assert not torch.equal(together["tokens"][0], together["tokens"][1])
    other = kind(batch_size=4, seed=1).split("train")
    assert not np.array_equal(other[3]["tokens"], data[3]["tokens"])


@pytest.mark.parametrize("kind", MODULES)
def test_held_out_sets_are_fixed_and_no_training_sequence(kind):
    sizes = {"max_validation_windows": 6, "max_test_windows": 5, "batch_size": 4}
    here, there = kind(seed=0, **sizes), kind(seed=5, **sizes)
    rows = {}
    for split, loader in (("validation", here.val_dataloader()), ("test", here.test_dataloader())):
        batches = list(loader)
        assert sum(len(batch["tokens"]) for batch in batches) == len(here.split(split)) == sizes[f"max_{split}_windows"]
        rows[split] = [tuple(row.tolist()) for batch in batches for row in batch["tokens"]]
        again = stack([there.split(split)[n] for n in range(len(here.split(split)))])["tokens"]
        assert rows[split] == [tuple(row) for row in again.tolist()]
    rows["train"] = [tuple(here.split("train")[n]["tokens"].tolist()) for n in range(300)]
    everything = [row for split in rows.values() for row in split]
    assert len(set(everything)) == len(everything)


def test_streams_never_share_random_bits():
    keys = [
        Draws(seed, split, [n]).uniform(8) for seed in (0, 1) for split in ("train", "validation", "test") for n in range(50)
    ]
    assert len(np.unique(np.concatenate(keys))) == 8 * len(keys)


def test_draws_are_even():
    draws = Draws(0, "train", range(4000))
    assert np.bincount(draws.below(7, 3).ravel(), minlength=7) == pytest.approx(np.full(7, 12000 / 7), rel=0.1)
    chosen = draws.distinct(6, 3)
    assert (np.sort(chosen)[:, 1:] > np.sort(chosen)[:, :-1]).all()
    for place in range(3):
        assert np.bincount(chosen[:, place], minlength=6) == pytest.approx(np.full(6, 4000 / 6), rel=0.15)
    first = draws.distinct(3, 2, weights=np.array([1.0, 2.0, 5.0]))[:, 0]
    assert np.bincount(first, minlength=3) == pytest.approx(np.array([500, 1000, 2500]), rel=0.15)
    available = np.arange(4000)[:, None] % 3 + 2
    assert (draws.distinct(9, 2, available=available) < available).all()


def test_log_spread_asks_as_often_in_each_doubling():
    module = AssociativeRecallDataModule(pairs=1, keys=2, max_length=1026, spread="log")
    gaps = drawn(module, rows=2000).distances.max(axis=1)
    shares = np.bincount(np.log2(gaps).astype(int), minlength=10)[3:10] / 2000
    assert shares == pytest.approx(np.full(7, shares.mean()), rel=0.35)


def epochs_of(module, count, world=1):
    data = module.split("train")
    loaders = [
        ResumableLoader(data, batch_size=2, collate_fn=stack, sampler=StreamSampler(data, module.seed, rank, world))
        for rank in range(world)
    ]
    return [[[tuple(row) for batch in loader for row in batch["tokens"].tolist()] for loader in loaders] for _ in range(count)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_sequence_comes_twice_in_any_epoch_or_on_any_rank(world):
    module = AssociativeRecallDataModule(batch_size=2, epoch_windows=10)
    epochs = epochs_of(module, 3, world)
    rows = [row for epoch in epochs for rank in epoch for row in rank]
    assert len(set(rows)) == len(rows) >= 30
    assert sorted(EvaluationSampler(range(5), 0, 1)) == list(range(5))


def test_a_stopped_run_goes_on_with_the_next_sequence():
    module = NeedleDataModule(batch_size=4, epoch_windows=12)
    loader = module.train_dataloader()
    whole = [batch["tokens"] for _ in range(3) for batch in loader]
    for stop in (1, 3, 5):
        first, passed = module.train_dataloader(), 0
        while passed < stop:
            for _ in first:
                passed += 1
                if passed == stop:
                    break
        resumed = module.train_dataloader()
        resumed.load_state_dict(first.state_dict())
        rest = [batch["tokens"] for _ in range(3) for batch in resumed][: len(whole) - stop]
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[stop:], strict=True)), stop


def test_a_limited_training_set_comes_again():
    module = AssociativeRecallDataModule(batch_size=2, max_train_windows=6)
    loader = module.train_dataloader()
    first, second = ({tuple(row) for batch in loader for row in batch["tokens"].tolist()} for _ in range(2))
    assert first == second and len(first) == 6
    assert module.describe()["train"]["windows"] == 6


@pytest.mark.parametrize("kind", MODULES)
def test_what_a_module_says(kind):
    module = kind(batch_size=3)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == dict.fromkeys(
        ("tokens", "labels", "distances"), ((3, 256), torch.int64)
    )
    assert module.tasks == ("recall", "token_labelling") and module.num_classes == module.vocab_size == len(module.class_names)
    assert json.loads(json.dumps(module.describe())) == module.describe()
    labels = np.concatenate([row["labels"] for row in module.split("test")])  # what always saying one symbol scores
    counts = np.bincount(labels[labels >= 0])
    assert module.baselines()["accuracy"] == pytest.approx(counts.max() / counts.sum(), rel=0.7)
    assert module.baselines()["accuracy"] <= module.baselines()["accuracy_guess"] <= 1
    with pytest.raises(ValueError, match="split='all'"):
        module.baselines("all")
    with pytest.raises(ConfigError, match="nothing to predict"):
        module.predict_dataloader()
    text = module.vocabulary.decode(batch["tokens"][0])
    assert module.vocabulary.encode(text) == batch["tokens"][0].tolist()


def test_symbols():
    symbols = SymbolVocabulary("x", {"k": 2, "v": 3})
    assert symbols.names == ["k0", "k1", "v0", "v1", "v2"] and symbols.first == {"k": 0, "v": 2} and symbols.size == 9
    assert symbols.encode("k1 v2 <mask>") == [1, 4, symbols.mask_id] and symbols.decode([1, 4, symbols.pad_id]) == "k1 v2"
    with pytest.raises(ValueError, match="'z9', symbol 1, is not in the x vocabulary"):
        symbols.encode("k0 z9")
    with pytest.raises(ValueError, match=r"outside 0\.\.8 of x"):
        symbols.decode([9])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (AssociativeRecallDataModule, {"pairs": 65}, r"data\.keys=64: .*at least data\.pairs=65"),
        (AssociativeRecallDataModule, {"distance": 0}, r"data\.distance=0: give tokens"),
        (AssociativeRecallDataModule, {"distance": True}, r"data\.distance=True"),
        (AssociativeRecallDataModule, {"distance": 1.5}, r"data\.distance=1\.5: .*a share of max_length"),
        (AssociativeRecallDataModule, {"distance": 220}, r"data\.distance=220: .*take at most 194"),
        (AssociativeRecallDataModule, {"pairs": 64, "max_length": 128}, r"data\.distance=1: .*take fewer of them"),
        (AssociativeRecallDataModule, {"max_distance": 40}, r"data\.max_distance=40: .*need at least 61"),
        (AssociativeRecallDataModule, {"spread": "even"}, r"data\.spread='even': take one of uniform, log"),
        (AssociativeRecallDataModule, {"max_test_windows": None}, r"data\.max_test_windows=None"),
        (AssociativeRecallDataModule, {"values": 1}, r"data\.values=1: give a whole number, 2 or more"),
        (InductionDataModule, {"run": 65}, r"data\.symbols=64: .*at least data\.run=65"),
        (InductionDataModule, {"distance": 0.9}, r"data\.distance=230: .*take at most 164"),
        (SelectiveCopyDataModule, {"copies": 129}, r"data\.copies=129: half of data\.max_length=256 at most"),
        (SelectiveCopyDataModule, {"distance": 241}, r"data\.distance=241: .*give at most 240"),
        (SelectiveCopyDataModule, {"distance": 50, "max_distance": 40}, r"data\.max_distance=40: .*give 50 at least"),
        (NeedleDataModule, {"needles": 17}, r"data\.keys=16: .*at least data\.needles=17"),
        (NeedleDataModule, {"distance": 255}, r"data\.distance=255: .*give from 2 to 254 tokens"),
        (NeedleDataModule, {"needles": 8, "max_distance": 250}, r"data\.max_distance=250: .*give from 16 to 240"),
        (NeedleDataModule, {"distances": []}, r"data\.distances=\[\]: give a list of distances"),
        (NeedleDataModule, {"distances": [8, 255]}, r"data\.distances=255: .*give from 2 to 254 tokens"),
        (NeedleDataModule, {"distances": [64, 0.25]}, r"data\.distances=\[64, 0\.25\]: give each distance once"),
        (NeedleDataModule, {"distances": [8], "max_distance": 9}, r"data\.max_distance=9: give data\.distances or"),
        (NeedleDataModule, {"distance": 40, "max_distance": 20}, r"data\.max_distance=20: give at least data\.distance=40"),
    ],
)
def test_settings_that_cannot_work(kind, arguments, message):
    with pytest.raises(ConfigError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (AssociativeRecallDataModule, {"distance": 194}),
        (AssociativeRecallDataModule, {"max_distance": 61}),
        (InductionDataModule, {"distance": 164}),
        (SelectiveCopyDataModule, {"distance": 240}),
        (SelectiveCopyDataModule, {"distance": 50, "max_distance": 50}),
        (NeedleDataModule, {"distance": 254}),
        (NeedleDataModule, {"needles": 8, "max_distance": 240}),
    ],
)
def test_the_fix_that_a_refusal_names_works(kind, arguments):
    module = kind(**arguments)
    check_answers(module, drawn(module))


@pytest.mark.parametrize("kind", MODULES)
def test_long_batches_are_made_in_milliseconds(kind):
    data = SyntheticDataset(kind(max_length=2048).make, seed=0, split="train", size=1)
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        stack(data.__getitems__(range(16)))
        taken.append(time.perf_counter() - begun)
    assert min(taken) < 0.05

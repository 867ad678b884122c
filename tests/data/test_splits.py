"""Splits: complete, disjoint, and no group, form, year or position in two of them."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data import (
    PairedDataModule,
    SequenceClassificationDataModule,
    SequenceRegressionDataModule,
    TextDataModule,
    TokenLabellingDataModule,
)
from longspan.data.hiv1 import form_number, forms_by_number, parents
from longspan.data.splits import SPLITS, by_groups, by_position

QUICK = settings(max_examples=60, deadline=None)


@QUICK
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.floats(0, 0.4), st.floats(0, 0.4))
def test_positions_are_dealt_once_and_in_order(sizes, validation, test):
    parts = by_position(sizes, validation, test)
    seen = [(d, base) for split in SPLITS for d, begin, end in parts[split] for base in range(begin, end)]
    assert seen == [(d, base) for d, size in enumerate(sizes) for base in range(size)]
    total = sum(sizes)
    assert abs(sum(end - begin for _, begin, end in parts["test"]) - test * total) <= 1


@QUICK
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 7)), min_size=1, max_size=60), st.integers(0, 5))
def test_groups_are_never_parted(items, seed):
    groups = [str(group) for group, _ in items]
    weights = np.array([[label >> bit & 1 for bit in range(3)] for _, label in items], dtype=float)
    parts = by_groups(groups, weights, validation=0.2, test=0.2, seed=seed)
    assert sorted(np.concatenate([parts[split] for split in SPLITS]).tolist()) == list(range(len(items)))
    where = [{groups[index] for index in parts[split]} for split in SPLITS]
    assert not (where[0] & where[1] or where[0] & where[2] or where[1] & where[2])
    again = by_groups(groups, weights, validation=0.2, test=0.2, seed=seed)
    assert all((parts[split] == again[split]).all() for split in SPLITS)


def test_classes_are_spread_evenly():
    labels = np.repeat([0, 1, 2], [700, 250, 50])
    parts = by_groups(list(range(1000)), np.eye(3)[labels], validation=0.1, test=0.2, seed=0)
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        counts = np.bincount(labels[parts[split]], minlength=3)
        assert np.abs(counts - share * np.array([700, 250, 50])).max() <= 1


@pytest.mark.parametrize("holders", [1, 2, 3])
def test_rare_classes_are_in_training(holders):
    labels = np.repeat([0, 1, 2], [60, 40, holders])
    for seed in range(10):
        parts = by_groups(list(range(len(labels))), np.eye(3)[labels], validation=0.1, test=0.1, seed=seed)
        assert set(labels[parts["train"]]) == {0, 1, 2}
        assert all(len(parts[split]) for split in SPLITS)


def test_three_sequences_still_make_three_splits():
    for labels in ([0, 0, 1], [0, 1, 2], [0, 1, 1]):
        parts = by_groups([0, 1, 2], np.eye(3)[labels], validation=0.3, test=0.3, seed=0)
        assert [len(parts[split]) for split in SPLITS] == [1, 1, 1]


def test_equal_documents_stay_together(tmp_path):
    for n in range(40):
        (tmp_path / f"{n:02}.txt").write_text(f"document {n % 20} " * 5)
    data = TextDataModule(path=str(tmp_path), max_length=16)
    data.setup()
    texts = [{data.split(s)[i]["id"] for i in range(len(data.split(s)))} for s in SPLITS]
    contents = [{int(name[:2]) % 20 for name in names} for names in texts]
    assert all(contents) and not (contents[0] & contents[1] or contents[0] & contents[2] or contents[1] & contents[2])
    assert sum(map(len, texts)) == 40


def test_groups_that_share_a_text_go_together(tmp_path, capsys):
    rows = [(f"text {n // 2}", "ab"[n // 2 % 2], f"p{n % 2}{n // 4}") for n in range(80)]  # each text stands in two groups
    one = [(f"common {n}" if n % 2 else "nothing found", "ab"[n % 2], f"p{n // 2}") for n in range(80)]
    for number, (each, shared) in enumerate(((rows, False), (one, True))):
        file = tmp_path / f"{number}.csv"
        file.write_text("text,label,patient\n" + "".join(",".join(row) + "\n" for row in each))
        data = SequenceClassificationDataModule(str(file), vocabulary="bytes", group_column="patient")
        data.setup()
        held = [
            {(bytes(d.tokens.astype("uint8")), d.row.values["patient"]) for d in data.split(split).documents}
            for split in SPLITS
        ]
        for first, second in itertools.combinations(held, 2):
            assert not {group for _, group in first} & {group for _, group in second}
            assert bool({text for text, _ in first} & {text for text, _ in second}) == shared
        said = data.describe()["test"].get("in_training", 0), "of the test split are in training too" in capsys.readouterr().err
        assert said == ((len(held[2]) // 2, True) if shared else (0, False))


@pytest.mark.parametrize("kind", ["classes", "numbers", "texts", "pairs"])
def test_held_out_files_that_are_in_training_are_counted(kind, tmp_path):
    for name, numbers in (("train", range(40)), ("validation", range(50, 55)), ("test", range(35, 45))):
        rows = [{"text": f"text {n}", "label": n % 2, "source": f"text {n}", "target": "x"} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make = {
        "classes": SequenceClassificationDataModule,
        "numbers": SequenceRegressionDataModule,
        "texts": TextDataModule,
        "pairs": PairedDataModule,
    }[kind]
    files = {f"{split}_path": str(tmp_path / f"{split}.jsonl") for split in ("validation", "test")}
    data = make(str(tmp_path / "train.jsonl"), vocabulary="bytes", max_length=64, **files)
    data.setup()
    told = data.describe()
    assert told["test"]["in_training"] == 5 and "in_training" not in told["validation"]


@pytest.mark.parametrize("seed", [0, 1])
def test_no_recombinant_form_is_in_two_splits(seed):
    data = SequenceClassificationDataModule(seed=seed)
    data.setup()
    forms = [{d.row.values["subtype"] for d in data.split(split).documents} for split in SPLITS]
    assert not (forms[0] & forms[1] or forms[0] & forms[2] or forms[1] & forms[2])
    assert sum(len(data.split(split)) for split in SPLITS) == 562 and sum(map(len, forms)) == 149
    assert not any("cpx" in form or "_" not in form for names in forms for form in names)
    for split in SPLITS:  # every class can be scored
        share = np.stack([data.split(split)[i]["target"] for i in range(len(data.split(split)))]).mean(axis=0)
        assert ((share > 0) & (share < 1)).all()
    assert data.class_names == ["A", "A1", "A6", "B", "C", "D", "E", "F1", "G"] and data.multi_label


def test_parents_from_names():
    names = ["01_AE", "42_BF1", "02_AG", "63_02A6", "07_BC", "109_0107", "127_07109", "06_cpx", "32_06A6", "92_C2U", "B"]
    forms = forms_by_number(names)
    assert {n: parents(forms[form_number(n)], forms) for n in names if "_" in n} == {
        "01_AE": {"A", "E"},
        "42_BF1": {"B", "F1"},
        "02_AG": {"A", "G"},
        "63_02A6": {"A", "G", "A6"},
        "07_BC": {"B", "C"},
        "109_0107": {"A", "E", "B", "C"},
        "127_07109": {"A", "E", "B", "C"},
        "06_cpx": set(),
        "32_06A6": {"A6"},
        "92_C2U": {"C2", "U"},
    }
    assert form_number("B") is None
    with pytest.raises(ValueError, match="no known form"):
        parents("99B", forms)


def test_addresses_are_held_out_whole_and_by_year():
    data = TextDataModule(max_length=4096)
    data.setup()
    years = {s: {int(data.split(s)[i]["id"][:4]) for i in range(len(data.split(s)))} for s in SPLITS}
    assert {year % 10 for year in years["validation"]} == {5} and {year % 10 for year in years["test"]} == {0}
    assert {year % 10 for year in years["train"]}.isdisjoint({0, 5})
    told = data.describe()
    assert sum(told[s]["documents"] for s in SPLITS) == 140
    assert sum(told[s]["symbols"] for s in SPLITS) == 7951607


def test_held_out_regions_of_a_genome_are_contiguous_and_apart():
    data = TokenLabellingDataModule(max_length=8192, batch_size=1)
    data.setup()
    spans = []
    for split in SPLITS:
        windows = data.split(split).windows
        assert (windows[1:, 1] == windows[:-1, 1] + windows[:-1, 2]).all()
        spans.append((int(windows[0, 1]), int(windows[-1, 1] + windows[-1, 2])))
    assert spans[0][0] == 0 and spans[0][1] == spans[1][0] and spans[1][1] == spans[2][0] and spans[2][1] == 4411532


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(2, 9))
def test_cuts_between_few_documents_predict_each_byte_once(tmp_path_factory, sizes, max_length):
    path = tmp_path_factory.mktemp("few") / "x.txt"
    path.write_text("\n".join(chr(65 + n) * (size + 5) for n, size in enumerate(sizes)))
    data = TextDataModule(path=str(path), format="lines", max_length=max_length, validation_fraction=0.3, test_fraction=0.3)
    data.setup()
    told = data.describe()
    assert sum(told[split]["symbols"] for split in SPLITS) == sum(sizes) + 5 * len(sizes)
    assert all(data.split(split).windows[:, 2].min() >= 2 for split in SPLITS)

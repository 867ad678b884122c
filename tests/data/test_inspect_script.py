"""scripts/inspect_data.py shows what a run would train on, as text and as a picture, and names what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import published_files
import published_tracks
import pytest
from PIL import Image
from warm_process import run

from longspan.data import (
    ContactMapDataModule,
    ImageClassificationDataModule,
    PairedDataModule,
    RegulatoryActivityDataModule,
    SequenceClassificationDataModule,
    SequenceRegressionDataModule,
    TokenLabellingDataModule,
)
from longspan.data.look import drawn, looked, shown

ROOT = Path(__file__).parents[2]


def inspect(*words):
    return run(ROOT / "scripts" / "inspect_data.py", *words, cwd=ROOT)


def test_it_prints_examples_lengths_and_labels_and_draws_them(tmp_path):
    table = tmp_path / "x.csv"
    table.write_text("text,label\n" + "".join(f"review number {n},{'good' if n % 3 else 'bad'}\n" for n in range(60)))
    done = inspect(
        "data=classification",
        "data.vocabulary=bytes",
        f"data.path={table}",
        "task=sequence_classification",
        "examples=2",
        f"output={tmp_path / 'look.png'}",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "train: 42 sequences of 15 to 16 tokens, half of them up to 16"
    assert lines[1] == "  labels: good 28, bad 14"
    assert lines[2].startswith(("  [good] review number ", "  [bad] review number ")) and lines[4].startswith("validation: 9 ")
    picture = np.asarray(Image.open(tmp_path / "look.png").convert("L"))
    assert picture.shape[1] > 1000 and picture.std() > 5
    assert done.stdout.rstrip().endswith(f"Written: {tmp_path / 'look.png'}")


def test_it_names_what_is_wrong(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,1,2\n")
    done = inspect("data=classification", "data.vocabulary=bytes", f"data.path={tmp_path / 'x.csv'}")
    assert done.returncode == 2 and "x.csv, line 2: 3 fields where the header has 2" in done.stderr
    assert "Traceback" not in done.stderr
    done = inspect("data=addresses", "data.max_lenght=5")
    assert done.returncode == 2 and "Did you mean data.max_length" in done.stderr
    for word, reason in (("examples=some", "a whole number from 0"), ("output=look.jpg", "a name that ends in .png")):
        done = inspect("data=addresses", word)
        assert done.returncode == 2 and f"{word}: " in done.stderr and reason in done.stderr


def test_what_is_sorted_by_class_shows_several(tmp_path):
    for kind in ("neg", "pos"):
        (tmp_path / kind).mkdir()
        for n in range(20):
            (tmp_path / kind / f"{n}.txt").write_text(f"Ünder {kind}\n{n}")
    look = looked(SequenceClassificationDataModule(str(tmp_path), vocabulary="bytes", max_length=64), examples=4)[0]
    assert [label for label, _ in look.examples] == ["neg", "neg", "pos", "pos"]
    assert look.examples[0][1].startswith("Ünder neg\\n")  # escaped is what would break the line, and no more


def test_numbers_are_told_and_drawn(tmp_path):
    rows = "".join(f"text {n},{n / 10},{-n}\n" for n in range(60))
    (tmp_path / "x.csv").write_text(f"text,a,b\n{rows}")
    data = SequenceRegressionDataModule(str(tmp_path / "x.csv"), label_columns=["a", "b"], max_length=16)
    looks = looked(data)
    text = shown(looks)
    low, high = (f"{bound:.4g}" for bound in (data.split("test").targets[:, 0].min(), data.split("test").targets[:, 0].max()))
    assert f"  a: from {low} to {high}, half of them up to" in text and "  b: from -" in text and "[a " in text
    drawn(looks, tmp_path / "look.png")
    assert np.asarray(Image.open(tmp_path / "look.png").convert("L")).std() > 5


@pytest.mark.parametrize("kind", ["activity", "contacts"])
def test_tracks_are_told_and_drawn(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "f").mkdir()
    path = str(getattr(published_tracks, kind)(tmp_path / "f"))
    module = RegulatoryActivityDataModule if kind == "activity" else ContactMapDataModule
    data = module(path=path, max_length=40 if kind == "activity" else 8192)
    looks = looked(data, examples=1)
    assert f"train: {len(data.split('train'))} sequences of {data.max_length:,} tokens each\n  numbers: from 0 to" in shown(
        looks
    )
    assert looks[0].images[0].shape == ((3, 6) if kind == "activity" else (4, 4)) and looks[0].images[0].max() == 255
    drawn(looks, tmp_path / "look.png")


def test_images_are_drawn_as_they_are(tmp_path):
    data = ImageClassificationDataModule(str(published_files.images(tmp_path / "i")), patch=4)
    look = looked(data)[0]
    assert len(look.images) == 16 and look.images[0].shape == (16, 16, 3)
    originals = {np.asarray(Image.open(file)).tobytes() for file in (tmp_path / "i").rglob("*.png")}
    assert all(image.astype(np.uint8).tobytes() in originals for image in look.images)
    drawn(looked(data), tmp_path / "look.png")
    assert Image.open(tmp_path / "look.png").size[1] > 700  # a row of pictures beside lengths and labels
    assert "16 patches of 48 numbers" in shown(looked(data))


def test_labels_of_bases_are_counted_by_windows_that_have_them():
    data = TokenLabellingDataModule(max_length=65536, max_train_windows=8, max_validation_windows=1, max_test_windows=1)
    look = looked(data, examples=1)[0]
    assert (
        look.labels["no gene"] == look.labels["gene on +"] == 8
        and look.lengths.tolist()[:7] == [65536] * 7
        and 0 < look.lengths[7] < 65536
    )
    assert set(look.examples[0][1][:100]) <= set("ACGT")


@pytest.mark.parametrize("labels", [["a|b", "b", ""], ["a", "b", "a|b"]])
def test_several_labels_are_each_counted(tmp_path, labels):
    rows = [f"text {n},{labels[n % 3]}" for n in range(60)]
    (tmp_path / "x.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    data = SequenceClassificationDataModule(str(tmp_path / "x.csv"), vocabulary="bytes", max_length=16, multi_label=True)
    look = looked(data)[0]
    count = sum(name in labels[int(data.split("train")[n]["id"]) % 3] for n in range(look.size) for name in "a")
    assert look.labels["a"] == count > 0


def test_pairs_are_shown_with_their_targets(tmp_path):
    rows = [f"{n} apples\t{n} pommes" for n in range(30)]
    (tmp_path / "x.tsv").write_text("\n".join(["source\ttarget", *rows]) + "\n")
    data = PairedDataModule(str(tmp_path / "x.tsv"), max_length=64, max_target_length=64, pack=True)
    looks = looked(data)
    assert sum(look.size for look in looks) == 30 and looks[0].lengths.max() == len("10 apples")
    text = looks[0].examples[0][1]
    assert text.replace("apples", "pommes").partition(" -> ")[0] == text.partition(" -> ")[2]
    drawn(looks, tmp_path / "look.png")
    assert shown(looks).startswith(f"train: {looks[0].size} sequences of 8 to 9 tokens")

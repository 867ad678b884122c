"""Every kind of bad input that is known to happen, in every reader that may meet it: an error by name, with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longspan.data import (
    DataFileError,
    GenomeDataModule,
    GenomicBenchmarkDataModule,
    ImageClassificationDataModule,
    LargeTextDataModule,
    PairedDataModule,
    SequenceClassificationDataModule,
    SequenceRegressionDataModule,
    SpeciesDataModule,
    StreamedClassificationDataModule,
    StreamedTextDataModule,
    TextDataModule,
    TokenLabellingDataModule,
)

BASES = "ACGT" * 200
FASTA = f">one\n{BASES}\n>two\n{BASES}\n"
BED = "one\t0\t40\tgene\t0\t+\n"
GFF = "##gff-version 3\none\t.\tgene\t1\t40\t.\t+\t.\tID=a\n"
GTF = 'one\t.\tgene\t1\t40\t.\t+\t.\tgene_id "a";\n'
ROWS = "text,label\n" + "".join(f"text number {n},{'ab'[n % 2]}\n" for n in range(40))
JSONL = "".join(json.dumps({"text": f"text number {n}", "label": "ab"[n % 2]}) + "\n" for n in range(40))
GENBANK = (
    "LOCUS       one 40 bp DNA linear BCT 01-JAN-2000\nFEATURES             Location/Qualifiers\n"
    '     gene            {span}\n                     /gene="a"\nORIGIN\n'
    "        1 acgtacgtac gtacgtacgt acgtacgtac gtacgtacgt\n//\n"
)


def truncated(text: str) -> bytes:
    """A gzip file that breaks off, as of a download that did."""
    noise = "".join(chr(33 + n) for n in np.random.default_rng(0).integers(0, 90, 4000))
    return gzip.compress((text + noise).encode())[:-1500]


def labelling(folder: Path, genes: str, **settings):
    return TokenLabellingDataModule(str(folder / "g.fa"), str(folder / genes), max_length=64, **settings)


def genome(folder: Path, name: str = "g.fa", **settings):
    return GenomeDataModule(str(folder / name), max_length=64, **settings)


def classes(folder: Path, name: str, kind=SequenceClassificationDataModule, **settings):
    return kind(str(folder / name), **{"vocabulary": "bytes", "max_length": 32, **settings})


def streamed(folder: Path, name: str, kind=StreamedTextDataModule, **settings):
    return kind(str(folder / name), max_length=32, **settings)


def text(folder: Path, name: str, **settings):
    return TextDataModule(str(folder / name), max_length=32, **settings)


def large(folder: Path, name: str):
    return LargeTextDataModule(str(folder / name), cache_dir=str(folder / "cache"))


def pairs(folder: Path, name: str, **settings):
    return PairedDataModule(str(folder / name), max_length=32, max_target_length=32, **settings)


CUT = "not a whole .gz file"
SOURCES = {"source_column": "text", "target_column": "label"}


def with_labels(folder: Path, name: str = "g.fa"):
    return classes(folder, name, vocabulary="nucleotides", labels_path=str(folder / "labels.csv"))


# kind of fault: [(files, what reads them, the file and line that are named, a word of the reason)]
CASES = {
    "truncated gz": [
        ({"g.fa.gz": truncated(FASTA)}, lambda f: genome(f, "g.fa.gz"), "g.fa.gz, line ", CUT),
        ({"g.fa.gz": truncated(FASTA)}, lambda f: genome(f, "g.fa.gz", memory_mapped=True), "g.fa.gz, line ", CUT),
        ({"g.fa": FASTA, "g.bed.gz": truncated(BED)}, lambda f: labelling(f, "g.bed.gz"), "g.bed.gz, line ", CUT),
        ({"g.fa": FASTA, "g.gff3.gz": truncated(GFF)}, lambda f: labelling(f, "g.gff3.gz"), "g.gff3.gz, line ", CUT),
        ({"x.jsonl.gz": truncated(JSONL)}, lambda f: text(f, "x.jsonl.gz"), "x.jsonl.gz, line ", CUT),
        ({"x.csv.gz": truncated(ROWS)}, lambda f: classes(f, "x.csv.gz"), "x.csv.gz, line ", CUT),
        ({"x.txt.gz": truncated(ROWS)}, lambda f: text(f, "x.txt.gz"), "x.txt.gz, line ", CUT),
        ({"x.txt.gz": truncated(ROWS)}, lambda f: large(f, "x.txt.gz"), "x.txt.gz, line ", CUT),
        ({"x.jsonl.gz": truncated(JSONL)}, lambda f: large(f, "x.jsonl.gz"), "x.jsonl.gz, line ", CUT),
        ({"x.jsonl.gz": truncated(JSONL)}, lambda f: streamed(f, "x.jsonl.gz"), "x.jsonl.gz, line ", CUT),
        ({"x.jsonl.gz": truncated(JSONL)}, lambda f: pairs(f, "x.jsonl.gz", **SOURCES), "x.jsonl.gz, line ", CUT),
    ],
    "non-ASCII FASTA": [
        ({"g.fa": ">one\nACGT\nACéGT\n"}, genome, "g.fa, line 3:", "'é' at position 3"),
        ({"g.fa": ">one\nACGT\nACéGT\n"}, lambda f: genome(f, memory_mapped=True), "g.fa, line 3:", "'é' at position 3"),
        ({"g.fa": ">one\nACGT\nACéGT\n", "g.bed": BED}, lambda f: labelling(f, "g.bed"), "g.fa, line 3:", "'é' at position 3"),
        ({"g.fa": b">one\nACGT\n>tw\xe9\nACGT\n"}, genome, "g.fa, line 3:", "not UTF-8"),
        (
            {"g.fa": ">one\nACGT\n>two\nAC\u2028GT\n", "labels.csv": "id,label\none,a\n"},
            with_labels,
            "g.fa, line 4:",
            "position 3",
        ),
    ],
    "features past the end": [
        (
            {"g.fa": FASTA, "g.bed": BED + "two\t10\t900\tgene\t0\t+\n"},
            lambda f: labelling(f, "g.bed"),
            "g.bed, line 2:",
            "end 900",
        ),
        (
            {"g.fa": FASTA, "g.bed": BED + "two\t10\t900\tgene\t0\t+\n"},
            lambda f: labelling(f, "g.bed", memory_mapped=True),
            "g.bed, line 2:",
            "end 900",
        ),
        (
            {"g.fa": FASTA, "g.gff3": GFF.replace("\t40\t", "\t801\t")},
            lambda f: labelling(f, "g.gff3"),
            "g.gff3, line 2:",
            "end 801",
        ),
        (
            {"g.fa": FASTA, "g.gtf": GTF.replace("\t40\t", "\t801\t")},
            lambda f: labelling(f, "g.gtf"),
            "g.gtf, line 1:",
            "end 801",
        ),
        (
            {"g.fa": FASTA, "g.bed": BED.replace("one", "three")},
            lambda f: labelling(f, "g.bed"),
            "g.bed, line 1:",
            "'three' is not",
        ),
        (
            {"g.gb": GENBANK.format(span="5..50")},
            lambda f: TokenLabellingDataModule(str(f / "g.gb"), max_length=8),
            "g.gb, line 3:",
            "50",
        ),
    ],
    "labels unseen in training": [
        (
            {"x.csv": ROWS, "y.csv": "text,label\nnew,a\nother,c\n"},
            lambda f: classes(f, "x.csv", test_path=str(f / "y.csv")),
            "y.csv, line 3:",
            "'c'",
        ),
        (
            {"x.csv": ROWS, "y.csv": "text,label\nnew,a\nother,c\n"},
            lambda f: classes(f, "x.csv", validation_path=str(f / "y.csv"), multi_label=True),
            "y.csv, line 3:",
            "'c'",
        ),
        (
            {"x.csv": ROWS},
            lambda f: classes(f, "x.csv", class_names=["b", "z"]),
            "x.csv, line 2:",
            "'a' is not in data.class_names",
        ),
        (
            {"x.jsonl": JSONL, "y.jsonl": '{"text": "new", "label": "c"}\n'},
            lambda f: streamed(
                f, "x.jsonl", StreamedClassificationDataModule, test_path=str(f / "y.jsonl"), validation_fraction=0.3
            ),
            "y.jsonl, line 1:",
            "'c'",
        ),
        (
            {"splits/train/a/0.png": 8, "splits/train/b/0.png": 8, "splits/test/c/0.png": 8},
            lambda f: ImageClassificationDataModule(str(f / "splits"), patch=4),
            "c/0.png:",
            "'c'",
        ),
        (
            {"enhancers/train.fna": ">x|0\nACGT\n>y|1\nACGG\n", "enhancers/test.fna": ">z|0\nACGT\n>w|2\nACGG\n"},
            lambda f: GenomicBenchmarkDataModule(path=str(f), benchmark="nucleotide_transformer", dataset="enhancers"),
            "test.fna, line 3:",
            "'2'",
        ),
    ],
    "empty files": [
        ({"g.fa": ""}, genome, "g.fa:", "empty"),
        ({"g.fa": ""}, lambda f: genome(f, memory_mapped=True), "g.fa:", "empty"),
        ({"g.fa": FASTA, "g.bed": ""}, lambda f: labelling(f, "g.bed"), "g.bed:", "empty"),
        ({"g.fa": ">one\n>two\nACGT\n"}, genome, "g.fa, line 1:", "has no bases"),
        ({"x.txt": ""}, lambda f: text(f, "x.txt"), "x.txt:", "empty"),
        ({"x.csv": ""}, lambda f: classes(f, "x.csv"), "x.csv:", "empty"),
        ({"x.csv": "text,label\n"}, lambda f: classes(f, "x.csv"), "x.csv", "no row"),
        ({"x.jsonl": ""}, lambda f: text(f, "x.jsonl"), "x.jsonl:", "empty"),
        ({"x.jsonl": ""}, lambda f: streamed(f, "x.jsonl"), "x.jsonl:", "empty"),
        ({"x.txt": ""}, lambda f: large(f, "x.txt"), "x.txt:", "holds no text"),
        ({"x.csv": ""}, lambda f: classes(f, "x.csv", SequenceRegressionDataModule, label_column="label"), "x.csv:", "empty"),
        ({"s/a.fa": FASTA, "s/b.fa": ""}, lambda f: SpeciesDataModule(str(f / "s"), max_length=16), "b.fa:", "empty"),
        ({"de.txt": "eins\n", "en.txt": ""}, lambda f: pairs(f, "de.txt", target_path=str(f / "en.txt")), "en.txt:", "empty"),
        (
            {"images/a/0.png": 8, "images/a/1.png": b""},
            lambda f: ImageClassificationDataModule(str(f / "images"), patch=4),
            "1.png:",
            "not an image",
        ),
        (
            {"enhancers/train.fna": "", "enhancers/test.fna": ""},
            lambda f: GenomicBenchmarkDataModule(path=str(f), benchmark="nucleotide_transformer", dataset="enhancers"),
            "train.fna:",
            "empty",
        ),
    ],
    "duplicate ids": [
        ({"g.fa": FASTA.replace("two", "one")}, genome, "g.fa, line 3:", "'one' is named on line 1 already"),
        ({"g.fa": FASTA.replace("two", "one")}, lambda f: genome(f, memory_mapped=True), "g.fa, line 3:", "named on line 1"),
        (
            {"g/1.fa": FASTA, "g/2.fa": FASTA, "g.bed": BED},
            lambda f: TokenLabellingDataModule(str(f / "g"), str(f / "g.bed"), max_length=64),
            "2.fa, line 1:",
            "'one' is in",
        ),
        (
            {"g.fa": FASTA, "labels.csv": "id,label\none,a\ntwo,b\none,b\n"},
            with_labels,
            "labels.csv, line 4:",
            "on line 2 already",
        ),
        ({"g.gb": GENBANK.format(span="5..20") * 2}, lambda f: genome(f, "g.gb"), "g.gb, line 8:", "named on line 1 already"),
        (
            {"x.csv": "id,text,label\n" + "".join(f"{n // 2},text {n},{'ab'[n % 2]}\n" for n in range(40))},
            lambda f: classes(f, "x.csv", id_column="id"),
            "x.csv, line 3:",
            "'0' is on line 2 already",
        ),
        (
            {"x.jsonl": "".join(json.dumps({"id": n % 30, "text": f"text {n}"}) + "\n" for n in range(40))},
            lambda f: text(f, "x.jsonl", id_column="id"),
            "x.jsonl, line 31:",
            "'0' is on line 1 already",
        ),
    ],
    "unequal columns": [
        (
            {"x.csv": ROWS + "one,two,three\n"},
            lambda f: classes(f, "x.csv"),
            "x.csv, line 42:",
            "3 fields where the header has 2",
        ),
        (
            {"x.tsv": ROWS.replace(",", "\t") + "one\n"},
            lambda f: classes(f, "x.tsv"),
            "x.tsv, line 42:",
            "1 fields where the header has 2",
        ),
        (
            {"x.csv": ROWS + "one\n"},
            lambda f: pairs(f, "x.csv", **SOURCES),
            "x.csv, line 42:",
            "1 fields where the header has 2",
        ),
        ({"x.jsonl": JSONL + '{"label": "a"}\n'}, lambda f: classes(f, "x.jsonl"), "x.jsonl, line 41:", "no column 'text'"),
        ({"x.jsonl": '{"label": "a", "text": null}\n'}, lambda f: streamed(f, "x.jsonl"), "x.jsonl, line 1:", "column 'text'"),
        ({"g.fa": FASTA, "g.bed": BED + "one\t5\n"}, lambda f: labelling(f, "g.bed"), "g.bed, line 2:", "column"),
        (
            {"g.fa": FASTA, "g.gff3": GFF + "one\t.\tgene\t1\t40\n"},
            lambda f: labelling(f, "g.gff3"),
            "g.gff3, line 3:",
            "5 columns",
        ),
    ],
    "images of unequal size": [
        (
            {"images/a/0.png": 8, "images/b/0.png": 8, "images/b/1.png": 12},
            lambda f: ImageClassificationDataModule(str(f / "images"), patch=4),
            "b/1.png:",
            "12 x 12 pixels, and the ones before it 8 x 8",
        ),
        (
            {"splits/train/a/0.png": 8, "splits/train/b/0.png": 8, "splits/test/a/0.png": 12},
            lambda f: ImageClassificationDataModule(str(f / "splits"), patch=4),
            "test/a/0.png:",
            "12 x 12 pixels",
        ),
    ],
    "pairs of unequal count": [
        (
            {"de.txt": "eins\nzwei\ndrei\n", "en.txt": "one\ntwo\n"},
            lambda f: pairs(f, "de.txt", target_path=str(f / "en.txt")),
            "de.txt, line 3:",
            "has 3 lines and .*en.txt has 2",
        ),
        (
            {"de.txt": "eins\n", "en.txt": "one\ntwo\n"},
            lambda f: pairs(f, "de.txt", target_path=str(f / "en.txt")),
            "en.txt, line 2:",
            "has 2 lines and .*de.txt has 1",
        ),
    ],
}


@pytest.mark.parametrize(
    ("files", "make", "where", "reason"),
    [pytest.param(*case, id=f"{fault} {number}") for fault, cases in CASES.items() for number, case in enumerate(cases)],
)
def test_bad_input_is_named_with_file_and_line(files, make, where, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    for name, content in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            Image.fromarray(np.full((content, content, 3), 7 * len(name), dtype=np.uint8)).save(file)
        else:
            file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataFileError, match=reason) as wrong:
        make(tmp_path).setup()
    assert where in f"{wrong.value}:", str(wrong.value)


@pytest.mark.parametrize(
    ("name", "error"), [("images.npy", "6 images of the array and labels of shape"), ("images.npz", "6 images of images")]
)
def test_images_and_labels_of_unequal_count(name, error, tmp_path):
    images, labels = np.zeros((6, 8, 8), dtype=np.uint8), np.arange(5)
    if name.endswith("npy"):
        np.save(tmp_path / name, images)
        np.save(tmp_path / "images_labels.npy", labels)
    else:
        np.savez(tmp_path / name, images=images, labels=labels)
    with pytest.raises(DataFileError, match=error):
        ImageClassificationDataModule(str(tmp_path / name), patch=4).setup()

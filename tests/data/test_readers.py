"""Readers: what they return, and that a malformed file is named with its line and the reason."""

import bz2
import gzip
import json
import lzma
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config.errors import ConfigError
from longspan.data import NUCLEOTIDES, DataFileError
from longspan.data.files import list_files, read_bytes
from longspan.data.readers import read_bed, read_csv, read_fasta, read_hub, read_jsonl, read_lines, read_parquet

NAMES = st.text("abcXYZ012._-|", min_size=1, max_size=8)
BASES = st.text("ACGTUacgtuRYSWKMBDHVNn", min_size=1, max_size=90)
QUICK = settings(max_examples=60, deadline=None)


def wrap(bases: str, width: int) -> str:
    return "\n".join(bases[at : at + width] for at in range(0, len(bases), width))


@QUICK
@given(
    records=st.lists(st.tuples(NAMES, BASES), min_size=1, max_size=5, unique_by=lambda record: record[0]),
    width=st.integers(1, 100),
    end=st.sampled_from(["\n", "\r\n"]),
    blanks=st.booleans(),
    how=st.sampled_from(["", ".gz", ".xz"]),
)
def test_fasta_round_trip(tmp_path_factory, records, width, end, blanks, how):
    text = "".join(f">{name} what it is\n{wrap(bases, width)}\n" + "\n" * blanks for name, bases in records)
    data = text.replace("\n", end).encode()
    path = tmp_path_factory.mktemp("fasta") / f"g.fa{how}"
    path.write_bytes({"": lambda d: d, ".gz": gzip.compress, ".xz": lzma.compress}[how](data))
    read = read_fasta(path)
    assert [(r.name, NUCLEOTIDES.decode(r.tokens)) for r in read] == [
        (name, bases.upper().replace("U", "T")) for name, bases in records
    ]
    assert all(r.description == "what it is" and r.tokens.dtype == np.uint8 for r in read)


@QUICK
@given(
    records=st.lists(BASES, min_size=1, max_size=4),
    width=st.integers(1, 30),
    bad=st.sampled_from("-*.5EFJOZ!é"),
    data=st.data(),
)
def test_fasta_names_the_line_of_a_bad_base(tmp_path_factory, records, width, bad, data):
    lines = [line for n, bases in enumerate(records) for line in (f">r{n}", *wrap(bases, width).split("\n"))]
    at = data.draw(st.sampled_from([n for n, line in enumerate(lines) if not line.startswith(">")]))
    column = data.draw(st.integers(0, len(lines[at])))
    lines[at] = lines[at][:column] + bad + lines[at][column:]
    path = tmp_path_factory.mktemp("fasta") / "bad.fa"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataFileError) as caught:
        read_fasta(path)
    assert caught.value.line == at + 1 and caught.value.path == str(path)
    assert str(path) in str(caught.value) and f"line {at + 1}" in str(caught.value) and "no base" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", None, "empty"),
        ("\n\n", None, "no record"),
        ("ACGT\n>a\nACGT\n", 1, "before the first header"),
        ("\n  ;c\n>a\nACGT\n", 2, "before the first header"),
        (">a\nAC\n>b\n>c\nGG\n", 3, "'b' has no bases"),
        (">a\nAC\n>b\n", 3, "'b' has no bases"),
        (">a\nAC\n>\nAC\n", 3, "needs a name"),
        (">a\nAC\n> b\nAC\n", 3, "needs a name"),
        (">a\nAC\n>a again\nAC\n", 3, "line 1 already"),
        (">a\nAC\nA C\n", 3, "position 2"),
    ],
)
def test_malformed_fasta(tmp_path, text, line, reason):
    path = tmp_path / "x.fasta"
    path.write_text(text)
    with pytest.raises(DataFileError, match=reason) as caught:
        read_fasta(path)
    assert caught.value.line == line


GENE = st.tuples(NAMES, st.integers(0, 10**9), st.integers(1, 10**6), NAMES, st.sampled_from("+-"))


@QUICK
@given(genes=st.lists(GENE, min_size=1, max_size=8), tabs=st.booleans(), extra=st.booleans())
def test_bed_round_trip(tmp_path_factory, genes, tabs, extra):
    sign = "\t" if tabs else " "
    lines = ["track name=x", "# a comment", ""]
    for chrom, start, size, name, strand in genes:
        fields = [chrom, start, start + size, name, 0, strand, *(["1", "2"] * extra)]
        lines.append(sign.join(map(str, fields)))
    path = tmp_path_factory.mktemp("bed") / "g.bed"
    path.write_text("\n".join(lines) + "\n")
    read = read_bed(path)
    expected = [(c, s, s + size, n, st_) for c, s, size, n, st_ in genes]
    assert [(g.chrom, g.start, g.end, g.name, g.strand) for g in read] == expected
    assert [g.line for g in read] == list(range(4, 4 + len(genes)))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("c\t1\t5\tg\t0", "5 columns"),
        ("c\t-1\t5\tg\t0\t+", "start '-1'"),
        ("c\t1\t5.5\tg\t0\t+", "end '5.5'"),
        ("c\t5\t5\tg\t0\t+", "not before end"),
        ("c\t6\t5\tg\t0\t+", "not before end"),
        ("c\t1\t5\tg\t0\t.", "strand '.'"),
        ("\t1\t5\tg\t0\t+", "name .column 1. is empty"),
        ("c\t1\t²\tg\t0\t+", "end '²'"),
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_malformed_bed(tmp_path, row, reason, before):
    path = tmp_path / "x.bed"
    path.write_text("c\t1\t5\tg\t0\t+\n" * before + row + "\n")
    with pytest.raises(DataFileError, match=reason) as caught:
        read_bed(path)
    assert caught.value.line == before + 1


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=30)


@QUICK
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), delimiter=st.sampled_from([",", "\t"]))
def test_csv_and_jsonl_round_trip(tmp_path_factory, rows, delimiter):
    folder = tmp_path_factory.mktemp("tables")
    quote = lambda field: '"' + field.replace('"', '""') + '"'  # noqa: E731
    lines = [delimiter.join(map(quote, row)) for row in [("text", "label"), *rows]]
    (folder / "a.csv").write_text("\n".join(lines), encoding="utf-8", newline="")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    for read in (read_csv(folder / "a.csv", delimiter), read_jsonl(folder / "a.jsonl")):
        assert [(row.values["text"], row.values["label"]) for row in read] == rows


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("text,label\na,b\nc\n", 3, "1 fields where the header has 2"),
        ('text,label\n"two\nlines",b\nc,d,e\n', 4, "3 fields"),
        ('text,label\na,b\n"open,d\n', 3, "not CSV.*stands in quotes, its own doubled"),
        ("text,text\na,b\n", 1, "twice"),
        ("text,\na,b\n", 1, "has no name"),
        ("text,label\n", None, "no row"),
    ],
)
def test_malformed_csv(tmp_path, text, line, reason):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(DataFileError, match=reason) as caught:
        read_csv(path)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('{"a": 1}\n\n{"a": \n', 3, "not JSON"),
        ('{"a": 1}\n[1]\n', 2, "a JSON list"),
        ("\n", None, "no JSON object"),
    ],
)
def test_malformed_jsonl(tmp_path, text, line, reason):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(DataFileError, match=reason) as caught:
        read_jsonl(path)
    assert caught.value.line == line


def test_a_long_field_is_read_and_bytes_that_are_no_text_are_not(tmp_path):
    (tmp_path / "long.csv").write_text("text\n" + "x" * 300_000 + "\n")
    assert len(read_csv(tmp_path / "long.csv")[0].values["text"]) == 300_000
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataFileError, match="0xe9 is not UTF-8") as caught:
        read_jsonl(tmp_path / "latin.jsonl")
    assert caught.value.line == 2


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_damaged_archive_is_named(tmp_path, suffix):
    whole = (gzip if suffix == ".gz" else lzma).compress(b">a\n" + b"ACGT" * 1000)
    path = tmp_path / f"x.fa{suffix}"
    for damaged in (whole[: len(whole) // 2], b"no archive", whole[:20] + b"\xff" * 8 + whole[28:]):
        path.write_bytes(damaged)
        with pytest.raises(DataFileError, match=f"not a whole {suffix} file"):
            read_fasta(path)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip), (".bgz", gzip), (".xz", lzma), (".bz2", bz2)])
def test_a_broken_off_archive_is_named_with_its_line(tmp_path, suffix, pack):
    half = b"".join(b">%d\n%s\n" % (number, random.Random(number).randbytes(900).hex().encode()) for number in range(50))
    path = tmp_path / f"x.fa{suffix}"
    packed = pack.compress(half)
    path.write_bytes(packed + packed[:-4000])  # two archives in a row, as .bgz is
    whole = {".gz": range(180, 196), ".bgz": range(180, 196), ".xz": range(180, 196), ".bz2": [101]}  # one block of bzip2
    with pytest.raises(DataFileError, match=f"not a whole {suffix} file") as caught:
        read_bytes(path)
    assert caught.value.line in whole[suffix]


def test_lines_keep_their_numbers(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"one\n\n  \nfour\r\nfive")
    assert [(row.line, row.values["text"]) for row in read_lines(tmp_path / "x.txt")] == [
        (1, b"one"),
        (2, b""),  # what becomes of lines without text is said by data.on_empty
        (3, b"  "),
        (4, b"four"),
        (5, b"five"),
    ]


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"text": ["a", "b"], "label": [0, 1]})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert [row.values for row in read_parquet(tmp_path / "x.parquet")] == [
        {"text": "a", "label": 0},
        {"text": "b", "label": 1},
    ]
    (tmp_path / "y.parquet").write_text("no table")
    with pytest.raises(DataFileError, match="not a Parquet table"):
        read_parquet(tmp_path / "y.parquet")


def test_folders_and_globs(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "deep/a.txt", ".hidden", "c.jsonl.gz"):
        (tmp_path / name).write_text("x")
    assert [(p.name, kind) for p, kind in list_files("path", tmp_path)] == [
        ("b.txt", "text"),
        ("c.jsonl.gz", "jsonl"),
        ("a.txt", "text"),
    ]
    assert [p.name for p, _ in list_files("path", tmp_path / "**/*.txt")] == ["b.txt", "a.txt"]
    (tmp_path / "z.xyz").write_text("x")
    with pytest.raises(ConfigError, match=r"data\.path=.*z\.xyz.*data\.format"):
        list_files("path", tmp_path)
    assert ("z.xyz", "text") in [(p.name, kind) for p, kind in list_files("path", tmp_path, "text")]
    with pytest.raises(ConfigError, match=r"data\.path=.*no such file"):
        list_files("path", tmp_path / "nothing.txt")


def test_a_hub_name_without_a_network_fails_at_once_and_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.name='no_such/set'.*cannot be reached.*data\.path"):
        read_hub("no_such/set", None, "train")

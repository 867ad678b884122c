"""What is said of malformed files: the first wrong line and how many more; byte order marks are dropped everywhere alike."""

from __future__ import annotations

import codecs

import pytest

from longspan.config.errors import ConfigError
from longspan.data.errors import DataFileError
from longspan.data.files import read_bytes
from longspan.data.genes import label_bases
from longspan.data.readers import read_bed, read_csv, read_fasta, read_jsonl, read_lines, read_text
from longspan.data.text import TextDataModule

BED = "one\t0\t4\ta\t0\t+\n"


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (read_text, "words"),
        (read_lines, "a\nb\n"),
        (read_csv, "text,label\nx,1\n"),
        (read_jsonl, '{"text": "x"}\n'),
        (read_fasta, ">one\nACGT\n"),
        (read_bed, BED),
        (lambda file: read_csv(file, "\t"), "text\tlabel\nx\t1\n"),
    ],
)
def test_a_byte_order_mark_changes_nothing(read, content, tmp_path):
    file = tmp_path / "same"

    def seen(mark: bytes):
        file.write_bytes(mark + content.encode())
        return repr(read(file))

    assert seen(codecs.BOM_UTF8) == seen(b"")


def test_utf16_is_refused_by_its_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("words".encode("utf-16"))
    with pytest.raises(DataFileError, match="UTF-16"):
        read_bytes(tmp_path / "a.txt")


def test_a_file_of_a_mark_alone_is_empty(tmp_path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8)
    with pytest.raises(DataFileError, match="empty"):
        read_bytes(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("read", "lines", "line", "more"),
    [
        (read_bed, [BED, "one\tx\t4\ta\t0\t+\n", BED, "one\t9\t4\ta\t0\t+\n", "one\t1\t4\ta\t0\t*\n"], 2, "2 more such lines"),
        (read_jsonl, ["{}\n", "[1]\n", "{}\n", "{\n"], 2, "1 more such line"),
        (read_csv, ["a,b\n", "1,2\n", "1\n", "1,2,3\n"], 3, "1 more such line"),
        (read_csv, ["a,b\n", "1,2\n", "1\n"], 3, ""),
    ],
)
def test_the_first_wrong_line_is_named(read, lines, line, more, tmp_path):
    (tmp_path / "file").write_text("".join(lines))
    with pytest.raises(DataFileError) as wrong:
        read(tmp_path / "file")
    assert wrong.value.line == line and more in str(wrong.value)


def test_the_first_gene_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "g.fa").write_text(">one\nACGTACGT\n")
    (tmp_path / "g.bed").write_text("one\t5\t99\ta\t0\t+\none\t0\t4\ta\t0\t+\ntwo\t6\t8\ta\t0\t+\n")
    with pytest.raises(DataFileError, match=r"line 1: end 99 .*1 more such line\b"):
        label_bases(read_fasta(tmp_path / "g.fa"), read_bed(tmp_path / "g.bed"), "ignore")


def test_equal_texts_are_said_to_be_equal(tmp_path):
    (tmp_path / "same.jsonl").write_text('{"text": "the same"}\n' * 40)
    module = TextDataModule(path=str(tmp_path / "same.jsonl"), max_length=8, batch_size=1)
    with pytest.raises(ConfigError, match=r"same\.jsonl'.*40 documents are only 1 different text"):
        module.setup("fit")

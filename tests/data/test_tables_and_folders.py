"""What users bring: folders of classes, other delimiters, no header, empty rows, labels in columns, records without labels."""

import json
from functools import partial
from pathlib import Path

import pytest

from longspan.config.errors import ConfigError
from longspan.data import (
    DataFileError,
    SequenceClassificationDataModule,
    StreamedClassificationDataModule,
    StreamedTextDataModule,
    TextDataModule,
    classification,
)
from longspan.data.readers import read_csv
from longspan.data.values import Loading, Source, Splits

SPLITS = ("train", "validation", "test")


def texts(**keys):
    return SequenceClassificationDataModule(vocabulary=keys.pop("vocabulary", "bytes"), max_length=32, **keys)


def examples(data):
    data.setup()
    rows = [data.split(split)[n] for split in SPLITS for n in range(len(data.split(split)))]
    return {row["id"]: row["target"].tolist() for row in rows}


def test_values_and_their_fields_are_the_same(tmp_path):
    (tmp_path / "x.txt").write_text("some text " * 40)
    path = str(tmp_path / "x.txt")
    one = TextDataModule(Source(path=path), Splits(test_fraction=0.2), Loading(max_length=8))
    other = TextDataModule(path=path, test_fraction=0.2, max_length=8)
    assert one.describe() == other.describe() == TextDataModule(path, test_fraction=0.2, max_length=8).describe()
    with pytest.raises(ConfigError, match=r"data\.batchsize=4: is no setting of TextDataModule.*data\.batch_size"):
        TextDataModule(batchsize=4)


@pytest.mark.parametrize("fasta", [False, True])
def test_a_folder_a_class(tmp_path, fasta):
    for name in ("neg", "pos"):
        (tmp_path / name / "deep").mkdir(parents=True)
        for n in range(8):
            file = tmp_path / name / "deep" / (f"{n}.fna" if fasta else f"{n}.txt")
            bases = f"ACGT{'ACGT'[n % 4] * n}{'TG' if name == 'pos' else 'A'}"
            file.write_text(f">r{n}\n{bases}\n>q{n}\nTT{bases}\n" if fasta else f"{name} text {n}")
    data = texts(path=str(tmp_path), vocabulary="nucleotides" if fasta else "bytes")
    found = examples(data)
    assert data.class_names == ["neg", "pos"] and len(found) == 16 * (1 + fasta)
    assert all(target == name.startswith("pos") for name, target in found.items())
    if fasta:
        kept = texts(path=str(tmp_path), vocabulary="nucleotides", group_column="file", label_column="kind")
        kept.setup()
        files = [{Path(d.row.path) for d in kept.split(split).documents} for split in SPLITS]
        names = [{path.stem for path in paths} for paths in files]
        assert all(names) and not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    (tmp_path / ("loose.fna" if fasta else "loose.txt")).write_text(">a\nACGT\n")
    with pytest.raises(ConfigError, match=r"data\.path=.*loose"):
        texts(path=str(tmp_path), vocabulary="nucleotides" if fasta else "bytes", label_from="folder").setup()


def test_a_folder_without_a_file_is_a_class_that_lacks(tmp_path):
    for name in ("neg", "pos", "unfinished/download", ".cache"):
        (tmp_path / name).mkdir(parents=True)
    for n in range(16):
        (tmp_path / ("neg", "pos")[n % 2] / f"{n}.txt").write_text(f"text number {n}")
    with pytest.raises(DataFileError, match=r"unfinished: the class has no file; give some, or remove its folder"):
        texts(path=str(tmp_path)).setup()
    (tmp_path / "unfinished" / "download").rmdir()
    (tmp_path / "unfinished").rmdir()
    assert len(examples(texts(path=str(tmp_path)))) == 16


def test_many_files_are_looked_at_once(tmp_path, monkeypatch):
    """How they lie was asked for each text again: 25,000 reviews took an hour."""
    seen = []
    below = Path.relative_to
    monkeypatch.setattr(Path, "relative_to", lambda self, *other: seen.append(self) or below(self, *other))
    for n in range(40):
        (tmp_path / ("neg", "pos")[n % 2]).mkdir(exist_ok=True)
        (tmp_path / ("neg", "pos")[n % 2] / f"{n}.txt").write_text(f"text number {n}")
    assert len(examples(texts(path=str(tmp_path)))) == 40 and 0 < len(seen) <= 10 * 40


def test_a_fasta_a_class(tmp_path):
    for n, name in enumerate(("ecoli.v1.fa", "mtb.fsa", "phage.frn")):
        (tmp_path / name).write_text("".join(f">s{i}\n{'ACGT' * (i + 1)}{'ACG'[n]}\n" for i in range(6)))
    data = texts(path=str(tmp_path), vocabulary="nucleotides", validation_fraction=0.2, test_fraction=0.2)
    examples(data)
    assert data.class_names == ["ecoli.v1", "mtb", "phage"]


@pytest.mark.parametrize(
    ("name", "sign", "told"), [("x.csv", ";", None), ("x.csv", "\t", None), ("x.tsv", "|", "|"), ("x.csv", "\t", "tab")]
)
def test_other_delimiters(tmp_path, name, sign, told):
    (tmp_path / name).write_text(f"text{sign}label\n" + "".join(f'"a, text {n}"{sign}{n % 2}\n' for n in range(12)))
    assert len(examples(texts(path=str(tmp_path / name), delimiter=told))) == 12


def test_a_first_line_that_is_a_row_is_hinted_at(tmp_path):
    (tmp_path / "rows.csv").write_text("good,yes\nbad,no\n")
    with pytest.raises(
        DataFileError, match=r"columns are good, yes; set data.text_column, or data.header=false if they are a row"
    ):
        SequenceClassificationDataModule(str(tmp_path / "rows.csv")).setup()


def test_without_a_header(tmp_path):
    (tmp_path / "x.csv").write_text("".join(f"{n % 2},text {n}\n" for n in range(12)))
    data = texts(path=str(tmp_path / "x.csv"), header=False, text_column=2, label_column=1)
    assert len(examples(data)) == 12 and data.class_names == ["0", "1"]
    (tmp_path / "x.fa").write_text("".join(f">s{n} a strain\n{'ACGT' * (n + 1)}\n" for n in range(12)))
    (tmp_path / "y.csv").write_text("".join(f"s{n} of somewhere,{'ab'[n % 2]}\n" for n in range(12)))
    data = texts(path=str(tmp_path / "x.fa"), labels_path=str(tmp_path / "y.csv"), header=False, vocabulary="nucleotides")
    assert len(examples(data)) == 12 and data.class_names == ["a", "b"]


def test_empty_rows_are_refused_or_counted(tmp_path, capsys):
    (tmp_path / "x.csv").write_text(
        "text,label\n" + "".join(f"{'' if n in (3, 5) else f'text {n}'},{n % 2}\n" for n in range(14))
    )
    with pytest.raises(DataFileError, match=r"x\.csv, line 5: column 'text' holds an empty text.*\(and 1 more such line\)"):
        texts(path=str(tmp_path / "x.csv")).setup()
    data = texts(path=str(tmp_path / "x.csv"), on_empty="drop")
    assert len(examples(data)) == 12 and data.describe()["left_out"] == {"rows without text": 2}
    assert "2 rows without text left out, first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "streams"), [(kind, False) for kind in ("csv", "jsonl", "lines", "files")] + [("jsonl", True), ("lines", True)]
)
@pytest.mark.parametrize("blank", ["", " \t ", "\u3000\u00a0"])
def test_blanks_alone_are_no_text_wherever_they_stand(tmp_path, capsys, kind, blank, streams):
    found = [blank if n in (3, 5) else f"text number {n}" for n in range(24)]
    path = tmp_path / f"x.{kind.replace('lines', 'txt')}"
    if kind == "files":
        path.mkdir()
        for n, text in enumerate(found):
            (path / f"{n:02}.txt").write_text(text, encoding="utf-8")
    else:
        line = {"csv": lambda text: f'{text},"1"', "jsonl": lambda text: json.dumps({"text": text}), "lines": str}[kind]
        head = ["text,n"] if kind == "csv" else []
        path.write_text("\n".join([*head, *map(line, found)]) + "\n", encoding="utf-8")
    make = partial(StreamedTextDataModule if streams else TextDataModule, str(path), max_length=32)
    make = partial(make, format="lines") if kind == "lines" else make
    place = {"csv": "csv, line 5", "jsonl": "jsonl, line 4", "lines": "txt, line 4", "files": "03.txt"}[kind]
    with pytest.raises(DataFileError, match=rf"{place}: .*; fill it, or leave such out by data\.on_empty=drop"):
        make().setup()
    data = make(on_empty="drop", **({"test_fraction": 0.3, "validation_fraction": 0.3} if streams else {}))
    data.setup()
    left = data.describe()["left_out"]
    what = kind if kind in ("lines", "files") and not streams else "rows"
    assert [(name.split(" among")[0], count) for name, count in left.items()] == [(f"{what} without text", 2)]
    assert sum(len(batch["ids"]) for batch in data.predict_dataloader()) == 22
    assert f" {what} without text left out, first {path}" in capsys.readouterr().err


def test_records_and_labels_without_each_other(tmp_path):
    (tmp_path / "x.fa").write_text("".join(f">s{n}\n{'ACGT' * (n + 1)}\n" for n in range(14)))
    (tmp_path / "y.csv").write_text("id,label\n" + "".join(f"s{n},{n % 2}\n" for n in range(2, 20)))
    paths = {"path": str(tmp_path / "x.fa"), "labels_path": str(tmp_path / "y.csv"), "vocabulary": "nucleotides"}
    with pytest.raises(DataFileError, match=r"x\.fa, line 1: record 's0' has no row in .*1 more such record.*on_missing=drop"):
        texts(**paths).setup()
    data = texts(**paths, on_missing="drop")
    assert len(examples(data)) == 12
    assert data.describe()["left_out"] == {"records without a label": 2, "labels without a record": 6}


def test_held_out_data_beside_a_fasta_with_labels(tmp_path):
    for name, start in (("x", 1), ("z", 30)):
        (tmp_path / f"{name}.fa").write_text("".join(f">{name}{n}\n{'ACGT' * n}\n" for n in range(start, start + 14)))
        (tmp_path / f"{name}_labels.csv").write_text(
            "id,label\n" + "".join(f"{name}{n},{n % 2}\n" for n in range(start, start + 14))
        )
    (tmp_path / "held.csv").write_text("text,label\nACGTT,0\nACGTA,1\n")
    paths = {"path": str(tmp_path / "x.fa"), "vocabulary": "nucleotides"}
    table = texts(**paths, labels_path=str(tmp_path / "x_labels.csv"), test_path=str(tmp_path / "held.csv"))
    table.setup()
    assert [row["target"] for row in table.split("test")] == [0, 1], "a table has its labels in a column of its own"
    with pytest.raises(
        DataFileError, match=r"z\.fa, line 1: record 'z30' has no row in .*a folder or a glob of several tables"
    ):
        texts(**paths, labels_path=str(tmp_path / "x_labels.csv"), test_path=str(tmp_path / "z.fa")).setup()
    both = texts(**paths, labels_path=str(tmp_path / "*_labels.csv"), test_path=str(tmp_path / "z.fa"))
    both.setup()
    assert len(both.split("test")) == 14


def test_labels_find_their_records_in_linear_time(tmp_path, monkeypatch):
    """The names of all records were gathered for each label again: half a minute for 30,000."""
    looked = []

    class Counted(str):
        def __hash__(self):
            looked.append(self)
            return super().__hash__()

    first_word = classification._first_word
    monkeypatch.setattr(classification, "_first_word", lambda value: Counted(first_word(value)))
    (tmp_path / "x.fa").write_text("".join(f">s{n}\n{'ACGT' * (n + 1)}\n" for n in range(60)))
    (tmp_path / "y.csv").write_text("id,label\n" + "".join(f"s{n},{n % 2}\n" for n in range(60)))
    data = texts(path=str(tmp_path / "x.fa"), labels_path=str(tmp_path / "y.csv"), vocabulary="nucleotides")
    assert len(examples(data)) == 60 and 60 < len(looked) <= 15 * 60


@pytest.mark.parametrize("flags", [True, False])
def test_labels_in_columns(tmp_path, flags):
    rows = [(f"text {n}", n % 2 == 0, n % 3 == 0) for n in range(24)]
    cell = (lambda has, name: int(has)) if flags else (lambda has, name: name if has else "")
    lines = [f"{text},{cell(a, 'red')},{cell(b, 'blue')}\n" for text, a, b in rows]
    (tmp_path / "x.csv").write_text("text,red,blue\n" + "".join(lines))
    data = texts(path=str(tmp_path / "x.csv"), label_columns=["red", "blue"])
    found = examples(data)
    assert data.multi_label and data.class_names == ["red", "blue"]
    for n, (_, a, b) in enumerate(rows):
        right = dict(zip(data.class_names, found[str(n)], strict=True))
        assert right == {"red": float(a), "blue": float(b)}
    with pytest.raises(DataFileError, match=r"no column 'green'; columns are text, red, blue; set data\.label_columns"):
        texts(path=str(tmp_path / "x.csv"), label_columns=["green"]).setup()


def test_a_blank_among_0s_and_1s_is_no_label(tmp_path):
    lines = [f"text {n},{'' if n in (4, 6) else n % 2},{'' if n % 3 else 1}\n" for n in range(24)]
    (tmp_path / "x.csv").write_text("text,red,blue\n" + "".join(lines))
    with pytest.raises(DataFileError, match=r"x\.csv, line 6: column 'red' holds nothing, .*\(and 1 more such line\)"):
        texts(path=str(tmp_path / "x.csv"), label_columns=["red", "blue"]).setup()
    marked = texts(path=str(tmp_path / "x.csv"), label_columns=["blue"])  # a column of 1s and blanks says no by a blank
    assert sum(found[0] for found in examples(marked).values()) == 8


def test_a_row_without_a_group_is_named(tmp_path):
    lines = [f"text {n},{n % 2},{' ' if n in (4, 6) else n // 4}\n" for n in range(40)]
    (tmp_path / "x.csv").write_text("text,label,patient\n" + "".join(lines))
    with pytest.raises(DataFileError, match=r"x\.csv, line 6: column 'patient' names no group; .*\(and 1 more such line\)"):
        texts(path=str(tmp_path / "x.csv"), group_column="patient").setup()
    with pytest.raises(DataFileError, match=r"line 2: no column 'nurse'.*if they are a row \(and 39 more such lines\)$"):
        texts(path=str(tmp_path / "x.csv"), group_column="nurse").setup()  # the same mistake is said once


def test_a_word_among_columns_of_0_and_1_is_named(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("text,red,blue\na,0,1\nb,1,maybe\nc,,0\nd,perhaps,1\n")
    with pytest.raises(
        DataFileError, match=r"x.csv, line 3: column 'blue' holds 'maybe' where label columns hold 0 and 1"
    ) as error:
        texts(path=str(file), label_columns=["red", "blue"], multi_label=True).setup()
    assert "1 more" in str(error.value)


def columns_of(kind, path, **keys):
    keys = {"label_columns": ["first", "second"], "vocabulary": "bytes", "max_length": 32} | keys
    if kind == "streamed":
        keys = {"validation_fraction": 0.3, "test_fraction": 0.3} | keys
    return (StreamedClassificationDataModule if kind == "streamed" else SequenceClassificationDataModule)(str(path), **keys)


@pytest.mark.parametrize("kind", ["csv", "streamed"])
@pytest.mark.parametrize(
    ("yes", "no", "slip"), [("1", "0", "2"), ("yes", "no", "maybe"), ("true", "false", "-1"), ("1.0", "0.0", "nan")]
)
def test_a_slip_among_columns_of_0_and_1_makes_them_no_names(tmp_path, kind, yes, no, slip):
    rows = [[f"text {n}", yes if n % 2 else no, yes if n % 3 else no] for n in range(24)]

    def write():
        if kind == "csv":
            (tmp_path / "x.csv").write_text("text,first,second\n" + "".join(",".join(row) + "\n" for row in rows))
            return tmp_path / "x.csv"
        lines = [json.dumps(dict(zip(("text", "first", "second"), row, strict=True))) for row in rows]
        (tmp_path / "x.jsonl").write_text("\n".join(lines))
        return tmp_path / "x.jsonl"

    data = columns_of(kind, write())
    data.setup()
    assert data.class_names == ["first", "second"]
    rows[7][2] = slip
    wrong = (
        rf", line {9 if kind == 'csv' else 8}: column 'second' holds '{slip}' where label columns hold 0 and 1; .*class_names"
    )
    for classes in (None, ["first", "second"]):
        with pytest.raises(DataFileError, match=wrong):
            columns_of(kind, write(), class_names=classes).setup()
    named = columns_of(kind, write(), class_names=[no, yes, slip])
    named.setup()
    assert named.class_names == [no, yes, slip]


def test_a_slip_past_the_rows_that_a_stream_looks_at_is_named_too(tmp_path):
    lines = [{"text": f"text {n}", "first": n % 2, "second": 2 if n == 90 else n % 3 % 2} for n in range(100)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    small = {
        "sample_rows": 20,
        "max_validation_windows": 1,
        "max_test_windows": 1,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
    }
    data = columns_of("streamed", tmp_path / "x.jsonl", **small)
    data.setup()
    with pytest.raises(DataFileError, match="line 91: column 'second' holds 2 where"):
        next(iter(data.train_dataloader()))


def test_columns_of_numbers_are_names_where_few_are_0_and_1_or_the_user_lists_them(tmp_path):
    (tmp_path / "x.csv").write_text("text,first,second\n" + "".join(f"text {n},{n % 3},{n % 4}\n" for n in range(40)))
    with pytest.raises(DataFileError, match=r"line 4: column 'first' holds '2' .*\(and .* more such lines\)"):
        columns_of("csv", tmp_path / "x.csv").setup()
    data = columns_of("csv", tmp_path / "x.csv", class_names=["0", "1", "2", "3"])
    assert examples(data)["5"] == [0, 1, 1, 0]
    (tmp_path / "x.csv").write_text("text,first,second\n" + "".join(f"text {n},{n % 7},{n % 5 + 5}\n" for n in range(40)))
    data = columns_of("csv", tmp_path / "x.csv")
    data.setup()
    assert data.class_names == [str(n) for n in range(10)]


def test_duplicates_that_empty_a_split_are_named(tmp_path):
    (tmp_path / "x.csv").write_text("name,text,label\n" + "".join(f"n{n},same,{n % 2}\n" for n in range(6)))
    with pytest.raises(ConfigError, match=r"only 1 different text \(n0, n1, n2, \.\.\. equal others\)"):
        texts(path=str(tmp_path / "x.csv"), id_column="name").setup()


def test_the_first_line_of_each_kind_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,\nb,1\nc,\n")
    with pytest.raises(DataFileError, match=r"line 2: .*and 1 more such line\)"):
        texts(path=str(tmp_path / "x.csv")).setup()


LONE = 'text\tlabel\n"so he said\tx\nnothing\ty\nthe end"\tx\nof it\ty\n'


def test_a_lone_quote_of_a_tsv_swallows_no_lines(tmp_path):
    path = tmp_path / "lone.tsv"
    path.write_text('text\tlabel\n"so he said\tx\nnothing\ty\nthe "end\tx\nof it\ty\n')
    with pytest.raises(DataFileError, match=r"lone\.tsv, line 2: not TSV .*data\.quoting=false takes quotes as characters"):
        texts(path=str(path)).setup()
    path.write_text('text\tlabel\n"so he said\nand the end"\tx\nof it\ty\n')
    with pytest.raises(DataFileError, match=r"line 2: a quote that opens on this line closes on line 3; .*data\.quoting=true"):
        texts(path=str(path)).setup()


def test_quotes_are_characters_where_quoting_is_off(tmp_path):
    (tmp_path / "lone.tsv").write_text(LONE)
    rows = read_csv(tmp_path / "lone.tsv", "\t", quoting=False)
    assert [row.values["text"] for row in rows] == ['"so he said', "nothing", 'the end"', "of it"]
    swallowed = read_csv(tmp_path / "lone.tsv", "\t", quoting=True)
    assert [row.values["text"] for row in swallowed] == ["so he said\tx\nnothing\ty\nthe end", "of it"]
    (tmp_path / "quotes.csv").write_text('a "b",label\n"c,x\n')
    assert read_csv(tmp_path / "quotes.csv", None, quoting=False)[0].values == {'a "b"': '"c', "label": "x"}


def test_fields_in_quotes_hold_line_ends_where_asked(tmp_path):
    rows = [f'"text {n}\nand ""more"""\t{"xy"[n % 2]}' for n in range(12)]
    (tmp_path / "quoted.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    data = texts(path=str(tmp_path / "quoted.tsv"), quoting=True)
    data.setup()
    assert any(data.vocabulary.decode(one["tokens"].tolist()).endswith('and "more"') for one in data.split("train"))
    (tmp_path / "quoted.csv").write_text("\n".join(["text,label", *(row.replace("\t", ",") for row in rows)]) + "\n")
    texts(path=str(tmp_path / "quoted.csv")).setup()  # of CSV it is the rule


def test_quoting_that_is_no_switch_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.quoting=3: .*csv\.QUOTE_NONE"):
        texts(path=str(tmp_path), quoting=3)

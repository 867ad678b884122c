"""Annotation in each format gives the same labels; a wrong format, a strand that is none and a bad line are named."""

import gzip

import numpy as np
import pytest

from longspan.config.errors import ConfigError
from longspan.data import DataFileError, TokenLabellingDataModule
from longspan.data.readers import read_annotation, read_genbank

BASES = "ACGTTGCAAC" * 12
GFF = "##gff-version 3\n#!a comment\n" + "".join(
    "\t".join(map(str, row)) + "\n"
    for row in [
        ("c1", "x", "gene", 11, 40, ".", "+", ".", "ID=g1;Name=dnaA"),
        ("c1", "x", "CDS", 11, 40, ".", "+", "0", "ID=c1;Parent=g1"),
        ("c1", "x", "tRNA", 31, 60, ".", "-", ".", "ID=t1"),
        ("c1", "x", "region", 1, 120, ".", ".", ".", "ID=r"),
    ]
)
GTF = (
    GFF.replace("##gff-version 3\n", "")
    .replace("ID=g1;Name=dnaA", 'gene_id "g1"; gene "dnaA";')
    .replace("ID=c1;Parent=g1", 'gene_id "g1";')
    .replace("ID=t1", 'gene_id "t1";')
    .replace("ID=r", 'gene_id "r";')
)
BED = "c1\t10\t40\tgene\t0\t+\nc1\t10\t40\tCDS\t0\t+\nc1\t30\t60\ttRNA\t0\t-\n"


def genbank(name="c1", bases=BASES, end="//\n"):
    from Bio.Seq import Seq
    from Bio.SeqFeature import CompoundLocation, SeqFeature, SimpleLocation
    from Bio.SeqRecord import SeqRecord

    record = SeqRecord(Seq(bases), id=name, name=name, annotations={"molecule_type": "DNA"})
    gene, cds = SimpleLocation(10, 40, 1), CompoundLocation([SimpleLocation(10, 20, 1), SimpleLocation(20, 40, 1)])
    record.features = [
        SeqFeature(gene, type="gene", qualifiers={"gene": ["dnaA"]}),
        SeqFeature(cds, type="CDS"),
        SeqFeature(SimpleLocation(30, 60, -1), type="tRNA"),
    ]
    return record.format("genbank").removesuffix("//\n") + end


CONTENT = {"g.gff3": GFF, "g.gff": GFF, "g.gtf": GTF, "g.bed": BED, "g.gbk": genbank()}


def write(folder, name, text):
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return str(path)


@pytest.mark.parametrize("name", [*CONTENT, "g.gff3.gz", "g.gtf.bgz"])
def test_every_format_gives_the_same_features(tmp_path, name):
    path = write(tmp_path, name, CONTENT[name.removesuffix(".gz").removesuffix(".bgz")])
    found = read_annotation(path, features=["CDS", "tRNA"])
    spans = np.zeros((2, 120), bool)
    for feature in found:
        spans[["CDS", "tRNA"].index(feature.kind), feature.start : feature.end] = True
    assert spans[0].nonzero()[0].tolist() == list(range(10, 40)) and spans[1].nonzero()[0].tolist() == list(range(30, 60))
    assert {feature.strand for feature in found if feature.kind == "tRNA"} == {"-"}
    if not name.startswith("g.bed"):
        assert [(gene.start, gene.end, gene.name) for gene in read_annotation(path)] == [(10, 40, "dnaA")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("g.bed", GFF, r"g\.bed, line 1: is GFF3 by its content, and not BED"),
        ("g.gff3", BED, r"line 1: is BED by its content, and not GFF3.*data\.genes_format=bed"),
        ("g.gff3", GTF, r"line 2: is GTF by its content"),
        ("g.gtf", genbank(), r"line 1: is GenBank by its content"),
        ("g.gbk", ">c1\nACGT\n", r"line 1: is FASTA by its content"),
        ("g.xyz", "some words\n", r"line 1: is neither BED, GFF3, GTF nor GenBank"),
        ("g.xyz", ">c1\nACGT\n", r"line 1: is FASTA, which has no features"),
        ("g.gff3", GFF.replace("\t11\t40\t.\t+\t0", "\t41\t40\t.\t+\t0"), r"line 4: start 41 is after end 40"),
        ("g.gff3", GFF.replace("\t11\t", "\t0\t"), r"line 3: start '0' is not a whole number from 1.*1 more such line"),
        ("g.gff3", GFF.replace("31\t60\t.\t-", "31\t60\t.\t."), r"line 5: tRNA on strand '\.'.*data\.strands=false"),
        ("g.gff3", GFF + "c1\tx\tCDS\t3\n", r"line 7: 4 columns where GFF3 has 9"),
        ("g.gbk", genbank(end=""), r"breaks off|not GenBank"),
        ("g.gff3", GFF.replace("tRNA", "rRNA"), r"holds no feature tRNA; it has .*rRNA.*set data\.features"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, name, text, message):
    with pytest.raises(DataFileError, match=message):
        read_annotation(write(tmp_path, name, text), features=["CDS", "tRNA"])


def labels(module):
    module.setup()
    items = [module.split("train")[n] for n in range(len(module.split("train")))]
    return np.concatenate([item["labels"] for item in items])


@pytest.mark.parametrize(
    ("settings", "names", "expected"),
    [
        ({"overlap": "ignore"}, ["no feature", "CDS on +", "CDS on -", "tRNA on +", "tRNA on -"], (1, -100, 4)),
        ({"overlap": "listed"}, ["no feature", "CDS on +", "CDS on -", "tRNA on +", "tRNA on -"], (1, 1, 4)),
        ({"overlap": "first", "strands": False}, ["no feature", "CDS", "tRNA"], (1, 1, 2)),
    ],
)
def test_own_features_are_labels(tmp_path, settings, names, expected):
    fasta = write(tmp_path, "g.fna", f">c1 a plasmid\n{BASES}\n")
    data = TokenLabellingDataModule(fasta, write(tmp_path, "g.gff", GFF), features=["CDS", "tRNA"], max_length=16, **settings)
    found = labels(data)
    assert data.class_names == names and data.num_classes == len(names)
    right = np.zeros(120, int)
    right[10:30], right[30:40], right[40:60] = expected
    assert found.tolist() == right[: len(found)].tolist()
    assert data.describe()["train"].get("not_scored", 0) == int((found < 0).sum()), "what is not trained on is counted"
    if settings.get("strands", True):
        assert data.label_complement.tolist() == [0, 2, 1, 4, 3]


def test_genbank_alone_is_genome_and_genes(tmp_path):
    path = write(tmp_path, "g.gbk", genbank())
    data = TokenLabellingDataModule(path, max_length=16)
    assert labels(data)[10:40].tolist() == [1] * 30 and read_genbank(path).sequences()[0].name == "c1"


def test_features_on_other_sequences_are_refused_or_counted(tmp_path, capsys):
    fasta = write(tmp_path, "g.fa", f">c1\n{BASES}\n")
    other = write(tmp_path, "g.gff", GFF + "c9\tx\tgene\t3\t9\t.\t+\t.\tID=z\n")
    with pytest.raises(DataFileError, match=r"g\.gff, line 7: sequence 'c9' is not in the FASTA.*on_missing=drop"):
        TokenLabellingDataModule(fasta, other, max_length=16).setup()
    data = TokenLabellingDataModule(fasta, other, max_length=16, on_missing="drop")
    assert data.describe()["left_out"] == {"features on sequences that the FASTA does not have": 1}
    assert "1 features" in capsys.readouterr().err
    far = write(tmp_path, "f.gff", GFF.replace("\t11\t40\t.\t+\t.", "\t11\t400\t.\t+\t."))
    with pytest.raises(DataFileError, match=r"f\.gff, line 3: end 400 is past the end of 'c1'"):
        TokenLabellingDataModule(fasta, far, max_length=16, on_missing="drop").setup()


def test_chromosomes_are_held_out_by_name(tmp_path):
    fasta = write(tmp_path, "g.fa", "".join(f">c{n}\n{BASES}\n" for n in (1, 2, 3)))
    data = TokenLabellingDataModule(
        fasta, write(tmp_path, "g.gff", GFF), max_length=16, validation_chromosomes=["c3"], test_chromosomes=["c1"]
    )
    data.setup()
    ids = {
        split: {data.split(split)[n]["id"] for n in range(len(data.split(split)))} for split in ("train", "validation", "test")
    }
    assert ids == {"train": {"c2"}, "validation": {"c3"}, "test": {"c1"}}
    with pytest.raises(ConfigError, match=r"data\.test_chromosomes=.*no record c7; the data has c1"):
        TokenLabellingDataModule(fasta, write(tmp_path, "g.gff", GFF), max_length=16, test_chromosomes=["c7"]).setup()

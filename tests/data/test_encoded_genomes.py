"""Genomes behind memory maps: the same windows as in memory, built once or not at all, and little memory of a process's own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import warm_process
from hypothesis import given
from hypothesis import strategies as st

from longspan.config.errors import ConfigError
from longspan.data import (
    DataFileError,
    GenomeDataModule,
    SpeciesDataModule,
    TokenLabellingDataModule,
    encoded_genomes,
    files,
    genes,
)
from longspan.data.readers import read_fasta


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def genome(tmp_path):
    generator = np.random.default_rng(0)
    text = ""
    for name, size in (("chr1", 3000), ("chr2", 700), ("chr3", 400)):
        bases = "".join(generator.choice(list("ACGTacgtN"), size))
        text += f">{name} of a test\n" + "\n".join(bases[at : at + 60] for at in range(0, size, 60)) + "\n"
    (tmp_path / "g.fa").write_text(text)
    (tmp_path / "g.bed").write_text(
        "chr1\t10\t900\tgene\t0\t+\nchr1\t850\t1700\tgene\t0\t-\nchr2\t5\t600\tgene\t0\t-\nchr3\t0\t400\tgene\t0\t+\n"
    )
    return str(tmp_path / "g.fa")


def items(data):
    for split in ("train", "validation", "test"):
        part = data.split(split)
        for index in range(len(part)):
            item = part[index]
            yield split, item["id"], item["start"], item["tokens"].tolist(), item.get("labels", np.zeros(0)).tolist()


WAYS = [
    {},
    {"windows": "random", "epoch_windows": 9},
    {"jitter": 20, "train_stride": 50},
    {"validation_chromosomes": ["chr2"], "test_chromosomes": ["chr3"]},
    {"vocabulary": "nucleotides_soft_masked", "reverse_complement": True},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [GenomeDataModule, TokenLabellingDataModule])
def test_windows_are_those_of_a_genome_in_memory(kind, way, genome, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1000)
    monkeypatch.setattr(genes, "PIECE", 128)
    own = {"genes_path": genome[:-2] + "bed"} if kind is TokenLabellingDataModule else {}
    mapped, held = (kind(genome, max_length=128, **own, **way, memory_mapped=yes) for yes in (True, False))
    assert list(items(mapped)) == list(items(held))
    tokens = mapped.split("train").corpus.tokens
    assert isinstance(tokens, np.memmap) and not isinstance(held.split("train").corpus.tokens, np.memmap)
    assert mapped.describe() == held.describe() and mapped.baselines() == held.baselines()
    for one, other in zip(mapped.train_dataloader(), held.train_dataloader(), strict=True):
        assert all((one[name] == other[name]).all() for name in other)
    mapped, held = (kind(genome, max_length=128, **own, memory_mapped=yes) for yes in (True, False))
    for one, other in zip(mapped.predict_dataloader(), held.predict_dataloader(), strict=True):
        assert (one["tokens"] == other["tokens"]).all() and one["ids"] == other["ids"]


def test_species_are_drawn_from_mapped_genomes_as_from_those_in_memory(tmp_path):
    generator = np.random.default_rng(0)
    for species in ("dog", "cat"):
        (tmp_path / "s" / species).mkdir(parents=True)
        for file in range(2):
            records = [f">chr{n}\n{''.join(generator.choice(list('ACGT'), 900))}\n" for n in range(2)]
            (tmp_path / "s" / species / f"{file}.fa").write_text("".join(records))
    mapped, held = (
        SpeciesDataModule(str(tmp_path / "s"), max_length=64, epoch_windows=20, memory_mapped=yes) for yes in (True, False)
    )
    for split in ("train", "validation", "test"):
        for one, other in zip(*([data.split(split)[n] for n in range(12)] for data in (mapped, held)), strict=True):
            assert (one["tokens"] == other["tokens"]).all() and one["target"] == other["target"] and one["id"] == other["id"]
    assert isinstance(mapped.split("test").corpus.tokens, np.memmap) and mapped.describe() == held.describe()


@pytest.mark.parametrize("overlap", ["ignore", "first", "listed"])
@given(data=st.data())
def test_labels_in_pieces_are_labels_at_once(data, overlap):
    size = data.draw(st.integers(1, 40))
    spans = data.draw(
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, size), st.sampled_from("+-"), st.sampled_from("ab")))
    )
    features = [
        genes.Interval("one", begin, min(size, begin + length), "", "0", strand, "f.bed", 1 + n, kind)
        for n, (begin, length, strand, kind) in enumerate(spans)
    ]
    annotation = genes.Annotation(features=("a", "b"))
    record = encoded_genomes.MappedRecord("one", "one", "", "g.fa", 1, 0, size)
    whole = genes.label_bases([record], features, overlap, annotation)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genes, "PIECE", data.draw(st.integers(1, 9)))
        assert genes.label_bases([record], features, overlap, annotation)[0].tolist() == whole.tolist()


@given(text=st.text(st.sampled_from("ACGT acgtNU\n\r\t>x-é"), max_size=60), size=st.integers(1, 9), begins=st.booleans())
def test_fasta_in_blocks_is_fasta_at_once(text, size, begins, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "drawn.fa"
    path.write_bytes(((">a\n" if begins else "") + text).encode())

    def read():
        try:
            return [(r.name, r.description, r.tokens.tolist(), r.line) for r in read_fasta(path)]
        except DataFileError as error:
            return error.line, error.reason.replace("byte 0xc3", "'é'")  # its second byte may be in the next block

    whole = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", size)
        assert read() == whole


def test_it_is_built_once_and_anew_where_the_file_changed(genome, cache):
    def folders():
        return sorted(path.name for path in cache.iterdir() if path.is_dir())

    first = list(items(GenomeDataModule(genome, max_length=128, memory_mapped=True)))
    once = folders()
    assert list(items(GenomeDataModule(genome, max_length=128, memory_mapped=True))) == first
    assert folders() == once and len(once) == 1
    Path(genome).write_text(Path(genome).read_text().replace("A", "C", 50))
    assert list(items(GenomeDataModule(genome, max_length=128, memory_mapped=True))) != first and len(folders()) == 2


def test_an_interrupted_build_leaves_nothing(genome, cache, monkeypatch):
    def broken(*given):
        yield from list(real(*given))[:2]
        raise KeyboardInterrupt

    real = encoded_genomes.stream_fasta
    monkeypatch.setattr(encoded_genomes, "stream_fasta", broken)
    with pytest.raises(KeyboardInterrupt):
        GenomeDataModule(genome, max_length=128, memory_mapped=True).setup()
    assert not [path for path in cache.iterdir() if path.is_dir()]
    monkeypatch.undo()


def test_a_cache_that_cannot_be_written_is_named(genome, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / place))
        with pytest.raises(
            ConfigError, match=rf"LONGSPAN_CACHE='.*{place}': the cache cannot be written \(.*; set it to a folder"
        ):
            GenomeDataModule(genome, max_length=128, memory_mapped=True).setup()


@pytest.mark.parametrize("name", ["tokens.bin", "labels.bin"])
def test_a_file_of_the_cache_that_was_cut_is_named(genome, cache, name):
    def read():
        TokenLabellingDataModule(genome, genes_path=genome[:-2] + "bed", max_length=128, memory_mapped=True).setup()

    read()
    (file,) = cache.glob(f"*/{name}")
    with file.open("r+b") as opened:
        opened.truncate(100)
    with pytest.raises(DataFileError, match=rf"{name}: holds 100 bases of the [\d,]+ that were written; delete .* built again"):
        read()


def test_large_files_are_mapped_unasked(genome, monkeypatch):
    monkeypatch.setattr(encoded_genomes, "LARGE", 4000)
    assert isinstance(GenomeDataModule(genome, max_length=128).split("train").corpus.tokens, np.memmap)
    monkeypatch.setattr(encoded_genomes, "LARGE", 5000)
    assert not isinstance(GenomeDataModule(genome, max_length=128).split("train").corpus.tokens, np.memmap)


def test_what_is_not_mapped_is_named(tmp_path, genome):
    with pytest.raises(ConfigError, match=r"data\.memory_mapped=True: what comes with the project is small"):
        GenomeDataModule(max_length=128, memory_mapped=True).setup()
    with pytest.raises(ConfigError, match=r"data\.memory_mapped='yes': give true or false"):
        GenomeDataModule(genome, max_length=128, memory_mapped="yes")
    Path(genome).write_text(">a\nACGT\n>b\nAC-GT\n")
    with pytest.raises(DataFileError, match="line 4: '-' at position 3"):
        GenomeDataModule(genome, max_length=128, memory_mapped=True).setup()
    (tmp_path / "two").mkdir()
    for name in "xy":
        (tmp_path / "two" / f"{name}.fa").write_text(">same\nACGT\n")
    (tmp_path / "two.bed").write_text("same\t0\t3\tgene\t0\t+\n")
    with pytest.raises(DataFileError, match=r"y\.fa, line 1: record 'same' is in .*x\.fa already"):
        TokenLabellingDataModule(str(tmp_path / "two"), str(tmp_path / "two.bed"), max_length=8, memory_mapped=True).setup()


MEASURE = """
import sys
from pathlib import Path
from longspan.data import GenomeDataModule, TokenLabellingDataModule

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

fasta, bed = sys.argv[1:]
common = {"batch_size": 1, "memory_mapped": True}
for data in (
    GenomeDataModule(fasta, max_length=1 << 20, windows="random", epoch_windows=4, **common),
    TokenLabellingDataModule(fasta, bed, max_length=1 << 16, max_train_windows=8, **common),
):
    before = own()
    for batch in data.train_dataloader():
        print(own() - before, list(batch["tokens"].shape))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_holds_little_of_a_large_genome(tmp_path):
    rows, line = 1 << 16, 60
    drawn = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), size=(rows, line))
    block = np.concatenate([drawn, np.full((rows, 1), 10, np.uint8)], axis=1).tobytes()
    (tmp_path / "large.fa").write_bytes(b">c1\n" + block * 12)  # 47 million bases
    (tmp_path / "large.bed").write_text("c1\t10\t40000000\tgene\t0\t+\n")
    (tmp_path / "measure.py").write_text(MEASURE)
    said = warm_process.run(tmp_path / "measure.py", tmp_path / "large.fa", tmp_path / "large.bed")
    assert said.returncode == 0, said.stderr
    grown = [float(row.split()[0]) for row in said.stdout.splitlines()]
    # a batch of int64 tokens is 8 MiB, a piece of labels 16; the genome would be 45
    assert len(grown) == 12 and max(grown) < 24, grown

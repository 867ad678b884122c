"""Small made-up files in the layout of published data sets, and the words with which an experiment reads them."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published_tracks
from PIL import Image

from longspan.data.lra.listops import TOKENS, ListOps

SPLITS = ("train", "val", "test")


def listops(folder: Path, examples: int = 8) -> Path:
    """basic_train.tsv and its like, with the round brackets that published files have."""
    kind = ListOps(min_tokens=5, max_tokens=60)
    for split in SPLITS:
        lines = ["Source\tTarget"]
        for number in range(examples):
            tokens, value = kind.expression(1, split, number)
            lines.append(f"( ( {' ) '.join(TOKENS[n] for n in tokens)}\t{value}")
        (folder / f"basic_{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def retrieval(folder: Path, pairs: int = 8) -> Path:
    """new_aan_pairs.train.tsv and its like."""
    for split in ("train", "eval", "test"):
        rows = [f"{n % 2}.0\tA{n}\tB{n}\tb'{split} paper {n} on parsing'\tb'another {n * 7}'" for n in range(pairs)]
        (folder / f"new_aan_pairs.{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def images(folder: Path, side: int = 16, each: int = 10, classes: tuple[str, ...] = ("bright", "dark")) -> Path:
    """A folder of PNGs a class."""
    random = np.random.default_rng(0)
    for n, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 128, (side, side, 3)) + (0 if n else 127)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def cifar(folder: Path, each: int = 20) -> Path:
    """CIFAR-10's binary files."""
    random = np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        records = random.integers(0, 256, (each, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(each) % 10
        records.tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("airplane automobile bird cat deer dog frog horse ship truck".replace(" ", "\n"))
    return folder


def reviews(folder: Path, rows: int = 40) -> Path:
    """A CSV of texts and labels."""
    with open(folder / "reviews.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("text", "label"))
        out.writerows((f"review {n} is {'good' if n % 2 else 'bad'} " * 4, n % 2) for n in range(rows))
    return folder / "reviews.csv"


def sequences(count: int, length: int = 40, seed: int = 0) -> list[str]:
    """So many random DNA sequences."""
    random = np.random.default_rng(seed)
    return ["".join("ACGT"[n] for n in random.integers(0, 4, length)) for _ in range(count)]


def genomic_benchmarks(folder: Path, dataset: str = "human_nontata_promoters") -> Path:
    """DATASET/train/CLASS/*.txt and DATASET/test/CLASS/*.txt."""
    for seed, (split, each) in enumerate((("train", 10), ("test", 4))):
        for n, name in enumerate(("negative", "positive")):
            (folder / dataset / split / name).mkdir(parents=True)
            for number, sequence in enumerate(sequences(each, seed=2 * seed + n)):
                (folder / dataset / split / name / f"{number}.txt").write_text(sequence)
    return folder


def nucleotide_transformer(folder: Path, dataset: str = "H3") -> Path:
    """DATASET/train.fna and DATASET/test.fna with the class at the end of each name."""
    (folder / dataset).mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", 20), ("test", 8))):
        lines = [f">{dataset}_{n}|{n % 2}\n{sequence}" for n, sequence in enumerate(sequences(count, seed=seed))]
        (folder / dataset / f"{split}.fna").write_text("\n".join(lines) + "\n")
    return folder


def gue(folder: Path) -> Path:
    """prom/prom_300_all/train.csv, dev.csv and test.csv."""
    own = folder / "prom" / "prom_300_all"
    own.mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", 16), ("dev", 8), ("test", 8))):
        rows = [f"{sequence},{n % 2}" for n, sequence in enumerate(sequences(count, seed=seed))]
        (own / f"{split}.csv").write_text("sequence,label\n" + "\n".join(rows) + "\n")
    return folder


PAIR = "gene_chrom gene_start gene_end region_chrom region_start region_end gene_id gene_strand region_id target subset"


def enhancer_target_gene(
    folder: Path, chromosomes: dict[str, str], pairs: list[str], enhancers: list[str], **sizes: int
) -> Path:
    """A genome, a table of pairs (words in the order of `PAIR`), a BED of enhancers, and the config that names them."""
    own = folder / "enhancer_target_gene"
    (own / "config").mkdir(parents=True, exist_ok=True)
    (own / "genome.fa").write_text("".join(f">{name} of nobody\n{bases}\n" for name, bases in chromosomes.items()))
    table = ["\t".join(["note", *line.split()]) for line in (PAIR, *pairs)]  # other columns are ignored
    (own / "pairs.tsv").write_text("\n".join(table) + "\n")
    with gzip.open(own / "enhancers.bed.gz", "wt") as file:
        file.write("".join("\t".join(line.split()) + "\n" for line in enhancers))
    config = ["genome_fa genome.fa str", "EPI_file pairs.tsv str", "enhancer_tabix_file enhancers.bed.gz str"]
    config += [f"{key}\t{value}  int" for key, value in sizes.items()]
    (own / "config" / "CRISPRi_EPI_K562_hg19.config").write_text("\n".join(config) + "\n\n")
    return folder


def eqtl(folder: Path, chromosomes: dict[str, str], pairs: list[str], variants: list[str], **sizes: int) -> Path:
    """A genome, a table of pairs (words as of `PAIR`, then two alleles), a BED of variants, and whole blood's config."""
    own = folder / "eQTL"
    (own / "config").mkdir(parents=True, exist_ok=True)
    (own / "genome.fa").write_text("".join(f">{name}\n{bases}\n" for name, bases in chromosomes.items()))
    table = ["\t".join(line.split()) for line in (f"{PAIR} allele1 allele2", *pairs)]
    (own / "pairs.tsv").write_text("\n".join(table) + "\n")
    with gzip.open(own / "variants.bed.gz", "wt") as file:
        file.write("".join("\t".join(line.split()) + "\n" for line in variants))
    config = ["genome_fa genome.fa str", "eQTL_file pairs.tsv str", "eQTL_tabix_file variants.bed.gz str", "verbose 1 int"]
    config += [f"{key} {value} int" for key, value in sizes.items()]
    (own / "config" / "gtex_hg38.Whole_Blood.config").write_text("\n".join(config) + "\n")
    return folder


def dnalongbench_eqtl(folder: Path) -> Path:
    """Eight pairs a split on a chromosome of 4,000 bases; every other variant loses two bases."""
    bases, pairs = sequences(1, 4000)[0], []
    for split in ("train", "valid", "test"):
        for n in range(8):
            gene, at, size = 200 + 20 * n, 900 - 10 * n, 1 + 2 * (n % 2)
            own, target = bases[at : at + size].upper(), ("negative", "positive")[n // 2 % 2]
            other = own[0] if size > 1 else "ACGT"["CGTA".index(own)]
            place = f"chr1 {gene} {gene + 30} chr1 {at} {at + size} g{n} + v{n}"
            pairs.append(f"{place} {target} {split} {own} {other}")
    flanks = {f"{what}_flank_{side}": 20 for what in ("tss", "region") for side in ("upstream", "downstream")}
    return eqtl(folder, {"chr1": bases}, pairs, ["chr1 500 501"], seq_len_cutoff=1000, **flanks)


def dnalongbench(folder: Path) -> Path:
    """Eight pairs a split on a chromosome of 4,000 bases."""
    pairs = []
    for split in ("train", "valid", "test"):
        for n in range(8):
            gene, region, strand = (200 + 20 * n, 900 - 10 * n, "+-"[n // 2 % 2])
            target = ("negative", "positive")[n // 2 % 2]
            pairs.append(f"chr1 {gene} {gene + 30} chr1 {region} {region + 20} g{n} {strand} r{n} {target} {split}")
    flanks = {f"{what}_flank_{side}": 20 for what in ("tss", "region") for side in ("upstream", "downstream")}
    bases = sequences(1, 4000)[0]
    return enhancer_target_gene(folder, {"chr1": bases}, pairs, ["chr1 500 560"], seq_len_cutoff=1000, **flanks)


def no_path(folder: Path) -> None:
    return None


# {experiment: (makes its files, words beside data.path)}
EXPERIMENTS: dict[str, tuple[Callable[[Path], Path | None], list[str]]] = {
    "lra_listops": (no_path, ["data.min_tokens=5", "data.max_tokens=60", "data.max_length=60"]),
    "lra_text": (reviews, ["data.name=null", "data.test_split=null"]),
    "lra_retrieval": (retrieval, []),
    "lra_image": (cifar, ["data.name=null", "data.test_split=null"]),
    "lra_pathfinder": (no_path, ["data.side=20", "data.dashes=3", "data.distractors=1"]),
    "genomic_benchmarks": (genomic_benchmarks, []),
    "nucleotide_transformer": (nucleotide_transformer, []),
    "gue": (gue, []),
    "dnalongbench": (dnalongbench, []),
    "dnalongbench_eqtl": (dnalongbench_eqtl, []),
    "dnalongbench_activity": (published_tracks.activity, ["data.max_length=32"]),
    "dnalongbench_initiation": (published_tracks.initiation, []),
    "dnalongbench_contacts": (published_tracks.contacts, ["data.max_length=8192"]),
    "image_patches": (images, ["data.patch=4"]),
    "image_shapes": (no_path, ["data.side=64", "data.line=1", "data.figures=3", "data.radius=10", "data.num_workers=0"]),
}


def words_for(experiment: str, folder: Path) -> list[str]:
    """The words with which an experiment takes a step on small files; none for those that bring their data."""
    if experiment not in EXPERIMENTS:
        return []
    make, words = EXPERIMENTS[experiment]
    folder.mkdir(parents=True, exist_ok=True)
    path = make(folder)
    return words if path is None else [*words, f"data.path={path}"]

"""The values that the keys of `conf/data/` take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from longspan.config.schema.kinds import (
    Count,
    CountOrZero,
    FilePath,
    Fix,
    Positive,
    Seed,
    Settings,
    SplitShare,
    Text,
    settings_of,
    whole,
)

Format = Literal["text", "lines", "jsonl", "csv", "tsv", "parquet", "fasta"]
Nucleotides = Literal["nucleotides", "nucleotides_soft_masked"]
Missing = Literal["error", "drop"]
Quoting = Annotated[bool | None, Fix("true (fields in quotes), false (quotes are characters like others) or null")]
Mapped = bool | Literal["auto"]
Column = Annotated[
    Annotated[str, Field(min_length=1)] | Annotated[int, Field(ge=1)],
    Fix("a text, the name of a column, or where data.header=false its number"),
]
Names = Annotated[list[Text], Field(min_length=1), Fix("a list of names")]
Vocabulary = Annotated[
    str,
    Field(min_length=1),
    Fix("bytes, nucleotides, proteins, kmers:6, bpe:4096, a tokenizer.json, or a folder or name of a Hugging Face tokenizer"),
]
Genome = Literal["h37rv", "msmeg"]
D = "longspan.data."


class Data(Settings):
    """The keys of all data modules."""

    required = ("max_length", "batch_size")

    max_length: Annotated[int, Field(ge=2, le=2**40), Fix("a whole number of tokens, 2 or more")]
    batch_size: Count
    seed: Seed
    max_train_windows: Count | None
    max_validation_windows: Count | None
    max_test_windows: Count | None
    num_workers: whole(0, 4096)  # type: ignore[valid-type]
    drop_last: bool = False


class Held(Data):
    """Data of which a part is held out."""

    path: FilePath | None
    validation_path: FilePath | None
    test_path: FilePath | None
    validation_fraction: SplitShare
    test_fraction: SplitShare
    validation_chromosomes: Names | None
    test_chromosomes: Names | None
    reverse_complement: bool


class Tabled(Held):
    """Tables, also those of the Hub."""

    name: Text | None
    subset: Text | None
    train_split: Text
    validation_split: Text | None
    test_split: Text | None
    format: Format | None
    text_column: Column
    id_column: Column | None
    delimiter: Text | None
    header: bool
    quoting: Quoting = None
    on_empty: Missing
    vocabulary: Vocabulary
    vocabulary_cache: FilePath | None = None


class Windowed(Settings):
    """Data whose training windows may be drawn anew."""

    windows: Literal["tiled", "random"]
    epoch_windows: Count
    jitter: CountOrZero


@settings_of(f"{D}TextDataModule")
class TextData(Tabled, Windowed):
    bundled: Literal["addresses", "h37rv", "msmeg"] | None
    split_by: Literal["auto", "document", "position"]
    train_stride: Count | None
    pack: bool
    validation_years_ending: whole(0, 9, "a digit")  # type: ignore[valid-type]
    test_years_ending: whole(0, 9, "a digit")  # type: ignore[valid-type]

    def problem(self) -> tuple[str, str] | None:
        if self.path and self.name:
            return "name", f"data.path={self.path} is given too; give null for one of them"
        if self.test_years_ending is not None and self.test_years_ending == self.validation_years_ending:
            return "test_years_ending", "give another digit than validation_years_ending"
        return _stride(self, self.train_stride, self.max_length - 1)


@settings_of(f"{D}GenomeDataModule")
class GenomeData(Held, Windowed):
    bundled: Genome | None
    split_by: Literal["auto", "document", "position"]
    train_stride: Count | None
    vocabulary: Vocabulary
    memory_mapped: Mapped = "auto"

    def problem(self) -> tuple[str, str] | None:
        return _stride(self, self.train_stride, self.max_length - 1)


@settings_of(f"{D}SequenceClassificationDataModule", f"{D}SequenceRegressionDataModule")
class ClassificationData(Tabled):
    bundled: Literal["hiv1"] | None
    label_column: Column
    label_columns: Annotated[list[Column], Field(min_length=1), Fix("a list of columns")] | None
    label_from: Literal["auto", "column", "file", "folder"]
    on_missing: Missing
    group_column: Text | None
    labels_path: FilePath | None
    multi_label: bool
    label_separator: Text
    class_names: Annotated[list[Any], Fix("a list of names, or null")] | None
    min_groups: Count
    pad_to_multiple: Count | None

    def problem(self) -> tuple[str, str] | None:
        if self.path and self.name:
            return "name", f"data.path={self.path} is given too; give null for one of them"
        if self.class_names is not None and len(set(map(str, self.class_names))) < len(self.class_names):
            return "class_names", "give each name once"
        return None


@settings_of(f"{D}SpeciesDataModule")
class SpeciesData(Held):
    label_from: Literal["auto", "file", "folder"]
    vocabulary: Nucleotides
    epoch_windows: Count
    memory_mapped: Mapped = "auto"


@settings_of(f"{D}TokenLabellingDataModule")
class LabellingData(Held, Windowed):
    bundled: Genome | None
    genes_path: FilePath | None
    test_bundled: Genome | None
    test_genes_path: FilePath | None
    overlap: Literal["ignore", "first", "listed"]
    features: Names | None
    strands: bool
    genes_format: Literal["bed", "gff3", "gtf", "genbank"] | None
    on_missing: Missing
    vocabulary: Nucleotides
    train_stride: Count | None
    memory_mapped: Mapped = "auto"

    def problem(self) -> tuple[str, str] | None:
        for key, other in (("test_path", "test_genes_path"), ("test_genes_path", "test_path")):
            if getattr(self, key) is None and getattr(self, other) is not None:
                return key, f"give it too: data.{other} is given, and the two go together"
        return _stride(self, self.train_stride, self.max_length)


@settings_of(f"{D}LargeTextDataModule")
class LargeTextData(Data):
    path: FilePath | None
    format: Literal["text", "lines", "jsonl"] | None
    text_column: Text
    on_empty: Missing
    cache_dir: FilePath
    vocabulary: Vocabulary
    validation_fraction: SplitShare
    test_fraction: SplitShare


class StreamedData(Data):
    """Data that streams in."""

    max_validation_windows: Count
    max_test_windows: Count
    path: FilePath | None
    name: Text | None
    subset: Text | None
    train_split: Text
    validation_split: Text | None
    test_split: Text | None
    validation_path: FilePath | None
    test_path: FilePath | None
    validation_fraction: SplitShare
    test_fraction: SplitShare
    format: Literal["text", "lines", "jsonl", "parquet"] | None
    text_column: Column
    id_column: Column | None
    on_empty: Missing
    vocabulary: Vocabulary
    vocabulary_cache: FilePath | None
    shuffle_rows: Count
    sample_rows: Count
    epoch_windows: Count

    def problem(self) -> tuple[str, str] | None:
        if self.path and self.name:
            return "name", f"data.path={self.path} is given too; give null for one of them"
        return None


@settings_of(f"{D}StreamedTextDataModule")
class StreamedText(StreamedData):
    """Language modelling."""


@settings_of(f"{D}StreamedClassificationDataModule")
class StreamedClassification(StreamedData):
    label_column: Column
    label_columns: Annotated[list[Column], Field(min_length=1), Fix("a list of columns")] | None
    multi_label: bool
    label_separator: Text
    class_names: Annotated[list[Any], Fix("a list of names, or null")] | None


@settings_of(f"{D}PairedDataModule")
class PairedData(Tabled):
    text_column: Column = ""
    id_column: Column | None = None
    delimiter: Text | None = None
    header: bool = True
    quoting: Quoting = None
    on_empty: Missing = "error"
    target_path: FilePath | None
    validation_target_path: FilePath | None
    test_target_path: FilePath | None
    bundled: Literal["addresses"] | None
    generated: Literal["dates", "numbers"] | None
    pairs: whole(10, meaning="a number of pairs")  # type: ignore[valid-type]
    source_column: Column
    target_column: Column
    target_vocabulary: Vocabulary | None
    max_target_length: Annotated[int, Field(ge=2, le=2**40), Fix("a whole number of tokens, 2 or more")]
    pack: bool
    pad_to_multiple: Count

    def problem(self) -> tuple[str, str] | None:
        if self.path and self.name:
            return "name", f"data.path={self.path} is given too; give null for one of them"
        return None


def _stride(data: Data, stride: int | None, most: int) -> tuple[str, str] | None:
    if stride is not None and stride > most:
        return "train_stride", f"give at most {most}, or tokens between windows are left out of training"
    return None


class Made(Data):
    """Data that a generator makes, or that is read from the published files."""

    path: FilePath | None
    train_examples: Count
    validation_examples: Count
    test_examples: Count
    made_seed: Seed


class ImageTokens(Data):
    """The keys that turn images into tokens."""

    input: Literal["pixels", "patches"]
    patch: Count
    grey: bool


@settings_of(f"{D}ImageClassificationDataModule")
class ImageData(ImageTokens):
    path: FilePath | None
    name: Text | None
    subset: Text | None
    train_split: Text
    validation_split: Text | None
    test_split: Text | None
    image_column: Text
    label_column: Text
    class_names: Annotated[list[Any], Fix("a list of names, or null")] | None
    validation_fraction: SplitShare
    test_fraction: SplitShare

    def problem(self) -> tuple[str, str] | None:
        if self.path and self.name:
            return "name", f"data.path={self.path} is given too; give null for one of them"
        return None


@settings_of(f"{D}ListOpsDataModule")
class ListOpsData(Made):
    max_depth: whole(2, 60, "levels")  # type: ignore[valid-type]
    max_arguments: whole(2, meaning="arguments")  # type: ignore[valid-type]
    min_tokens: CountOrZero
    max_tokens: whole(5, meaning="tokens")  # type: ignore[valid-type]

    def problem(self) -> tuple[str, str] | None:
        return ("max_tokens", f"give at least {self.min_tokens + 2}") if self.max_tokens < self.min_tokens + 2 else None


@settings_of(f"{D}PathfinderDataModule")
class PathfinderData(Made, ImageTokens):
    side: whole(16, meaning="pixels")  # type: ignore[valid-type]
    dashes: whole(2, meaning="dashes")  # type: ignore[valid-type]
    distractors: CountOrZero
    dash: Positive
    gap: Positive
    clearance: Positive
    validation_fraction: SplitShare
    test_fraction: SplitShare


@settings_of(f"{D}ShapesDataModule")
class ShapesData(ImageTokens):
    side: whole(32, meaning="pixels")  # type: ignore[valid-type]
    figures: whole(1, meaning="outlines")  # type: ignore[valid-type]
    share: Annotated[float, Field(gt=0.2, le=1), Fix("a share above 0.2 and up to 1")]
    radius: Positive
    line: whole(1, meaning="pixels")  # type: ignore[valid-type]
    noise: whole(0, 127, "grey values")  # type: ignore[valid-type]
    train_examples: Count
    validation_examples: Count
    test_examples: Count
    made_seed: Seed


@settings_of(f"{D}RetrievalDataModule")
class RetrievalData(Data):
    path: FilePath | None


@settings_of(f"{D}GenomicBenchmarkDataModule")
class GenomicBenchmarkData(Data):
    benchmark: Literal["genomic_benchmarks", "nucleotide_transformer", "gue"]
    dataset: Text
    path: FilePath | None
    hub: Text | None
    validation_fraction: SplitShare


@settings_of(f"{D}DNALongBenchDataModule")
class DNALongBenchData(Data):
    dataset: Literal["enhancer_target_gene", "eqtl"]
    tissue: Literal[
        "Adipose_Subcutaneous",
        "Artery_Tibial",
        "Cells_Cultured_fibroblasts",
        "Muscle_Skeletal",
        "Nerve_Tibial",
        "Skin_Not_Sun_Exposed_Suprapubic",
        "Skin_Sun_Exposed_Lower_leg",
        "Thyroid",
        "Whole_Blood",
    ] = "Whole_Blood"
    path: FilePath | None
    pad_to_multiple: Count | None


@settings_of(f"{D}RegulatoryActivityDataModule")
class RegulatoryActivityData(Data):
    path: FilePath | None
    organism: Literal["human", "mouse"]
    tracks: Annotated[list[CountOrZero], Field(min_length=1), Fix("a list of numbers of tracks from 0")] | None


@settings_of(f"{D}TranscriptionInitiationDataModule")
class TranscriptionInitiationData(Data):
    path: FilePath | None
    epoch_windows: Count


@settings_of(f"{D}ContactMapDataModule")
class ContactMapData(Data):
    path: FilePath | None
    cell: Literal["HFF", "H1hESC", "GM12878", "IMR90", "HCT116", "all"]

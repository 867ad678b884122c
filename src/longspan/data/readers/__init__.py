"""Readers, one file a format. Each raises `DataFileError` with file, line and reason, and skips nothing silently."""

from longspan.data.readers.annotation import ANNOTATIONS, read_annotation
from longspan.data.readers.bed import Interval, read_bed
from longspan.data.readers.bigwig import BigWig
from longspan.data.readers.fasta import FastaHeader, FastaRecord, read_fasta, stream_fasta
from longspan.data.readers.genbank import read_genbank
from longspan.data.readers.hub import read_hub
from longspan.data.readers.jsonl import read_jsonl
from longspan.data.readers.parquet import read_parquet
from longspan.data.readers.rows import Row, is_blank
from longspan.data.readers.tables import read_csv
from longspan.data.readers.text import read_lines, read_text
from longspan.data.readers.tfrecords import stream_tfrecords

__all__ = [
    "ANNOTATIONS",
    "BigWig",
    "FastaHeader",
    "FastaRecord",
    "Interval",
    "Row",
    "is_blank",
    "read_annotation",
    "read_bed",
    "read_csv",
    "read_fasta",
    "read_genbank",
    "read_hub",
    "read_jsonl",
    "read_lines",
    "read_parquet",
    "read_text",
    "stream_fasta",
    "stream_tfrecords",
]

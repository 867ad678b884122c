"""Windows, labels, packing and batches against loops that are too simple to be wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data import BYTES, NUCLEOTIDES, DataFileError
from longspan.data.batches import IGNORED, Collate
from longspan.data.corpus import Corpus, PackedDataset, WindowDataset, cut_windows, pack_windows, spread
from longspan.data.genes import label_bases
from longspan.data.readers import FastaRecord, Interval

QUICK = settings(max_examples=80, deadline=None)


@QUICK
@given(st.data(), st.integers(2, 12))
def test_windows_cover_each_region_and_no_more(data, max_length):
    stride = data.draw(st.integers(1, max_length))
    regions = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 40)), max_size=4))
    regions = [(document, begin, begin + size) for document, begin, size in regions]
    expected = []
    for document, begin, end in regions:
        at = begin
        while True:
            expected.append((document, at, min(max_length, end - at)))
            if at + max_length >= end:
                break
            at += stride
    assert [tuple(row) for row in cut_windows(regions, max_length, stride).tolist()] == expected


@QUICK
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(2, 16))
def test_every_byte_is_predicted_exactly_once(sizes, max_length):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 256, size) for size in sizes]
    corpus = Corpus.build(texts, [str(n) for n in range(len(sizes))], BYTES, first=BYTES.bos_id)
    regions = [(d, 0, corpus.size(d)) for d in range(len(corpus))]
    data = WindowDataset(corpus, cut_windows(regions, max_length, max_length - 1))
    predicted = {name: [] for name in corpus.names}
    for index in range(len(data)):
        item = data[index]
        assert len(item["tokens"]) <= max_length
        predicted[item["id"]].extend(item["tokens"][1:].tolist())
    assert [predicted[str(n)] for n in range(len(sizes))] == [text.tolist() for text in texts]


@QUICK
@given(st.lists(st.integers(2, 16), min_size=1, max_size=40))
def test_packing_loses_nothing_and_never_overfills(lengths):
    rows = pack_windows(np.array(lengths), 16)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 16 for row in rows)
    assert len(rows) <= 2 * -(-sum(lengths) // 16)  # best fit leaves at most one row half empty


def test_packed_items_and_their_limit():
    texts = [np.full(size, size) for size in (3, 9, 4, 2, 8)]
    corpus = Corpus.build(texts, list("abcde"), BYTES, first=BYTES.bos_id)
    windows = cut_windows([(d, 0, corpus.size(d)) for d in range(5)], 10, 9)
    data = PackedDataset(corpus, windows, pack_windows(windows[:, 2], 10))
    packed = [data[index] for index in range(len(data))]
    assert sum(len(item["tokens"]) for item in packed) == corpus.offsets[-1] and len(data) < len(windows)
    for item in packed:
        starts = item["tokens"] == BYTES.bos_id
        assert (np.cumsum(starts) - 1 == item["segments"]).all()
    kept = data.keep(2)
    assert len(kept) == 2 and kept.token_count == sum(len(kept[index]["tokens"]) for index in range(2))


def test_spread_is_even():
    windows = np.arange(30).reshape(10, 3)
    assert spread(windows, 4)[:, 0].tolist() == [0, 9, 18, 27]
    assert spread(windows, 10) is windows and spread(windows, None) is windows
    assert spread(windows, 1)[:, 0].tolist() == [0]


def intervals(genes, chrom="c"):
    return [Interval(chrom, start, end, "g", "0", strand, "x.bed", n + 1) for n, (start, end, strand) in enumerate(genes)]


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.sampled_from("+-")), max_size=8),
    st.sampled_from(["ignore", "first"]),
)
def test_labels_of_bases(genes, overlap):
    genes = [(start, min(start + size, 40), strand) for start, size, strand in genes]
    record = FastaRecord("c", "", np.zeros(40, dtype=np.uint8), "x.fa", 1)
    expected = []
    for base in range(40):
        over = [gene for gene in genes if gene[0] <= base < gene[1]]
        strands = {gene[2] for gene in over}
        if not over:
            expected.append(0)
        elif len(strands) == 2 and overlap == "ignore":
            expected.append(IGNORED)
        else:
            first = min(over, key=lambda gene: (gene[0], -gene[1]))
            tied = {gene[2] for gene in over if (gene[0], gene[1]) == (first[0], first[1])}
            expected.append({"+": 1, "-": 2}[first[2]] if len(tied) == 1 or overlap == "ignore" else None)
    labels = label_bases([record], intervals(genes), overlap)[0].tolist()
    assert all(want is None or got == want for got, want in zip(labels, expected, strict=True))


def test_genes_that_fit_no_sequence_are_named():
    record = FastaRecord("c", "", np.zeros(40, dtype=np.uint8), "x.fa", 1)
    with pytest.raises(DataFileError, match=r"x\.bed, line 2: end 41 is past the end of 'c', which has 40"):
        label_bases([record], intervals([(0, 40, "+"), (3, 41, "-")]), "ignore")
    with pytest.raises(DataFileError, match=r"x\.bed, line 1: sequence 'chr1' is not in the FASTA, which has c"):
        label_bases([record], intervals([(0, 4, "+")], "chr1"), "ignore")


def test_collate():
    items = [
        {"tokens": np.array([1, 2, 3]), "labels": np.array([0, 1, 2], dtype=np.int8), "id": "a", "start": 4},
        {"tokens": np.array([5]), "labels": np.array([-100], dtype=np.int8), "id": "b", "start": 0},
    ]
    batch = Collate(4, 15, lengths="always", names=True)(items)
    assert batch["tokens"].tolist() == [[1, 2, 3, 15], [5, 15, 15, 15]] and batch["tokens"].dtype == torch.int64
    assert batch["labels"].tolist() == [[0, 1, 2, -100], [-100] * 4] and batch["lengths"].tolist() == [3, 1]
    assert batch["ids"] == ["a", "b"] and batch["starts"].tolist() == [4, 0]
    assert Collate(8, 15, lengths="always", multiple=2)(items)["tokens"].shape == (2, 4)
    assert "lengths" not in Collate(3, 15, lengths="if_short")(items[:1])
    assert Collate(3, 15, lengths="if_short")(items)["lengths"].tolist() == [3, 1]
    targets = [{"tokens": np.array([1]), "target": np.array([0.0, 1.0], dtype=np.float32)}] * 2
    assert Collate(2, 15, lengths="always")(targets)["labels"].tolist() == [[0, 1], [0, 1]]


@QUICK
@given(st.binary(max_size=60))
def test_bytes_round_trip(data):
    assert BYTES.decode_bytes(BYTES.encode(data)) == data
    assert BYTES.decode([BYTES.bos_id, *BYTES.encode(data), BYTES.pad_id]) == data.decode(errors="replace")


@QUICK
@given(st.text("ACGTUacgtuRYSWKMBDHVNn", max_size=60))
def test_nucleotides_round_trip(text):
    ids = NUCLEOTIDES.encode(text)
    assert NUCLEOTIDES.decode(ids) == text.upper().replace("U", "T") and all(0 <= i < 15 for i in ids)


def test_vocabularies_refuse_what_is_not_in_them():
    assert NUCLEOTIDES.encode("ACGT") == [0, 1, 2, 3] and NUCLEOTIDES.size == 19 and BYTES.size == 260
    assert len({BYTES.pad_id, BYTES.bos_id, BYTES.mask_id, BYTES.eos_id}) == 4
    with pytest.raises(ValueError, match="'-' at position 2"):
        NUCLEOTIDES.encode("AC-")
    with pytest.raises(ValueError, match=r"outside 0\.\.18"):
        NUCLEOTIDES.decode([19])

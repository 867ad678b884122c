"""DNALongBench's numbers along sequences: sequences and targets against the files they are made of, and what is refused."""

import gzip
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import published_tracks as files
import pytest

from longspan.config.errors import ConfigError
from longspan.data import (
    ContactMapDataModule,
    DataFileError,
    RegulatoryActivityDataModule,
    TranscriptionInitiationDataModule,
)
from longspan.data.dnalongbench.initiation import TRACKS
from longspan.data.dnalongbench.tracks import bins_in
from longspan.data.readers import stream_tfrecords


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.mark.parametrize("packed", [bytes, zlib.compress, gzip.compress])
def test_tfrecords_packed_or_not(packed, tmp_path):
    rng = np.random.default_rng(0)
    records = [{"sequence": rng.bytes(size), "target": b""} for size in (0, 5, 200, 70_000)]
    path = tmp_path / "x.tfr"
    path.write_bytes(packed(files.framed([files.example(**record) for record in records])))
    assert list(stream_tfrecords(path)) == records


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no record"),
        (zlib.compress(files.framed([files.example(a=b"1234")])[:-7]), "ends within record 1: the file was cut off"),
        (zlib.compress(files.framed([files.example(a=bytes(9999))]))[:-9], "no end: the file was cut off"),
        (files.framed([files.example(a=b"1")]) + b"abc", "ends within record 2"),
        (zlib.compress(files.framed([b"hello"])), "record 1 is no tf.train.Example of bytes"),
        (zlib.compress(files.framed([files.example(a=b"1")])) + b"more", "bytes follow its compressed stream"),
        (b"a text that is long enough to be read as the length of a record", "the file is no TFRecord file"),
        (
            zlib.compress(files.framed([files.example(a=np.random.default_rng(0).bytes(999))]))[:800] + bytes(400),
            "not a whole .tfr",
        ),
    ],
)
def test_files_that_are_no_tfrecords(content, reason, tmp_path):
    path = tmp_path / "x.tfr"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=rf"x\.tfr: .*{reason}"):
        list(stream_tfrecords(path))


def test_bins_lie_in_the_middle():
    assert bins_in(196_608, 128, 896) == (128, 896, 0, 40_960)
    assert bins_in(1_048_576, 2048, 448) == (2048, 448, 0, 65_536)
    assert bins_in(256, 128, 896) == (128, 2, 447, 0)
    for length, near in ((128, 256), (300, 256), (196_608 + 128, 196_608)):
        with pytest.raises(ConfigError, match=rf"data.max_length={length}.*such as {near}$"):
            bins_in(length, 128, 896)


@pytest.mark.parametrize(("length", "margin", "bins"), [(40, 8, 6), (24, 0, 6), (16, 0, 4), (56, 16, 6)])
def test_activity_is_of_the_bins_in_the_middle(length, margin, bins, folder):
    data = RegulatoryActivityDataModule(path=str(files.activity(folder)), max_length=length, batch_size=2)
    batch = next(iter(data.test_dataloader()))
    assert batch["labels"].shape == (2, bins, 3) and batch["tokens"].shape == (2, length) and "lengths" not in batch
    assert data.bins.margin == margin and data.tracks == ["0", "1", "2"]
    for split in ("train", "validation", "test"):
        for n, item in enumerate(data.split(split)):
            text = data.vocabulary.decode_bytes(item["tokens"]).decode()
            shares = files.one_hot(text)[margin : margin + 4 * bins].reshape(bins, 4, 4).mean(1)
            np.testing.assert_allclose(item["target"], shares[:, :3])
            whole = ("train", "validation", "test").index(split) * 3 + n
            assert (item["id"], item["start"]) == ("chr1", 8 + 40 * whole + 20 - length // 2)
            if item["start"] < 0:
                assert text.startswith("N" * -item["start"])


def test_fewer_tracks_and_sequences_are_kept(folder):
    path = str(files.activity(folder, each=5))
    whole = RegulatoryActivityDataModule(path=path, max_length=40)
    some = RegulatoryActivityDataModule(path=path, max_length=40, tracks=[2, 0], max_train_windows=3)
    assert len(some.split("train")) == 3
    for kept, known in zip(some.split("train"), (whole.split("train")[n] for n in (0, 2, 4)), strict=True):
        np.testing.assert_array_equal(kept["target"], known["target"][:, [2, 0]])
        np.testing.assert_array_equal(kept["tokens"], known["tokens"])
    assert some.describe()["tracks"] == 2 and some.tracks == ["2", "0"]
    mean = np.concatenate([item["target"] for item in whole.split("train")]).mean(0)
    np.testing.assert_allclose(whole.target_mean, mean, rtol=1e-6)
    with pytest.raises(ConfigError, match=r"data.tracks=3: the files have 3 tracks"):
        RegulatoryActivityDataModule(path=path, max_length=40, tracks=[3]).setup()


def swapped(own: Path) -> None:
    lines = (own / "sequences.bed").read_text().splitlines()
    (own / "sequences.bed").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")


def edited(name: str, **values):
    def edit(own: Path) -> None:
        known = json.loads((own / name).read_text())
        (own / name).write_text(json.dumps({**known, **values}))

    return edit


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (swapped, r"train-0-0\.tfr: the record of chr1:48-88 .*sequences\.bed, line 1\) has other bases than the genome"),
        (lambda own: (own / "targets" / "valid-0-10.tfr").unlink(), "hold 2 records, where sequences.bed has 3 intervals"),
        (lambda own: (own / "targets" / "valid-0-10.tfr").rename(own / "targets" / "valid-a.tfr"), "does not end in a number"),
        (lambda own: [f.unlink() for f in (own / "targets").glob("test-*")], r"holds no file test-\*\.tfr"),
        (edited("statistics.json", num_targets=4), "18 numbers where statistics.json says 6 bins of 4 tracks"),
        (edited("statistics.json", seq_length=48), "a sequence of 40 bases where statistics.json says 48"),
        (edited("statistics.json", pool_width=0), "'pool_width' is 0"),
        (lambda own: (own / "statistics.json").write_text("{"), r"statistics\.json, line 1: is no JSON"),
        (lambda own: (own / "sequences.bed").write_text("chr1\t8\t48\tdev\n"), "line 1: subset 'dev' is unknown"),
        (lambda own: (own / "sequences.bed").write_text("chr1\t8\t48\ttrain\n"), "no interval of subset 'valid'"),
    ],
)
def test_activity_files_that_do_not_fit(spoil, reason, folder):
    path = files.activity(folder)
    spoil(path / "regulatory_sequence_activity_prediction" / "human")
    with pytest.raises(DataFileError, match=reason):
        RegulatoryActivityDataModule(path=str(path), max_length=40).setup()


@pytest.mark.parametrize(("known", "length", "bins"), [(6, 4, 4), (6, 6, 6), (6, 8, 6), (5, 3, 3)])
def test_contact_maps_keep_their_middle(known, length, bins, folder):
    data = ContactMapDataModule(path=str(files.contacts(folder, bins=known)), cell="GM12878", max_length=length * 2048)
    item = data.split("train")[1]
    full = np.zeros((known, known))
    full[np.triu_indices(known, 2)] = np.arange((known - 1) * (known - 2) // 2) + 2 / 4 + 1
    first = (known - bins) // 2
    wanted = full[first : first + bins, first : first + bins][np.triu_indices(bins, 2)]
    np.testing.assert_allclose(item["target"][:, 0], wanted)
    begin = (1 + first - data.bins.margin // 2048) * 2048
    text = files.bases(1, (known + 2) * 2048)[begin : begin + data.max_length]
    assert data.vocabulary.decode_bytes(item["tokens"]).decode() == text and item["start"] == begin
    every = ContactMapDataModule(path=data.path, cell="all", max_length=data.max_length)
    assert every.split("test")[0]["target"].shape == (len(wanted), 5) and every.tracks[2] == "GM12878"


def test_maps_of_other_sizes_are_refused(folder):
    path = files.contacts(folder)
    with pytest.raises(ConfigError, match=r"data.max_length=16384: the files have sequences of 12288 bases"):
        ContactMapDataModule(path=str(path), max_length=16384).setup()
    with pytest.raises(ConfigError, match=r"data.max_length=4096: bins are 2048 bases wide.*such as 8192"):
        ContactMapDataModule(path=str(path), max_length=4096).setup()
    other = path / "contact_map_prediction" / "targets" / "test-1.tfr"
    files.tfrecords(other, [(files.bases(1, 7 * 2048), np.zeros((6, 5)))])
    with pytest.raises(DataFileError, match=r"test-1\.tfr: a record of 14,336 bases and 6 pairs after some of 12,288 and 3"):
        ContactMapDataModule(path=str(path), max_length=8192).setup()
    files.tfrecords(other, [(files.bases(1, 12288), np.zeros((4, 5)))])
    with pytest.raises(DataFileError, match="20 numbers for 12,288 bases is no map of 5 cell lines"):
        ContactMapDataModule(path=str(path), max_length=8192).setup()


def initiation(folder, **keys):
    return TranscriptionInitiationDataModule(path=str(folder), **{"max_length": 400, "epoch_windows": 8, **keys})


def test_every_base_of_the_test_is_scored_once(folder):
    data = initiation(files.initiation(folder))
    scored = {"chr8": np.zeros(1500, dtype=int), "chr9": np.zeros(1500, dtype=int)}
    for item in data.split("test"):
        known = ~np.isnan(item["target"])
        assert (known.all(1) == known.any(1)).all()
        scored[item["id"]][item["start"] : item["start"] + 400] += known[:, 0]
    for places in scored.values():
        assert (places[100:1400] == 1).all() and not places[:100].any() and not places[1400:].any()


def test_signal_and_what_takes_its_place(folder):
    points = {"cage_plus": [(650, 1.0), (950, 3.0)], "encodecage_plus": [(650, 2.0)], "procap_minus": [(950, 4.0)]}
    data = initiation(files.initiation(folder, signal={track: points.get(track, [(0, 9.0)]) for track in TRACKS}))
    found = {track: set() for track in points}
    for number in range(400):
        item = data.split("train")[number]
        for track in points:
            values = item["target"][:, list(TRACKS).index(track)]
            found[track] |= {(item["start"] + int(n), float(values[n])) for n in np.flatnonzero(values)}
    assert dict(found["cage_plus"]) == pytest.approx({650: 2 * 0.61357, 950: 3.0})  # in the blacklist, and past it
    assert found["procap_minus"] == {(950, 4.0)}
    assert data.swap is not None and [data.tracks[n].replace("minus", "plus") for n in data.swap][:5] == data.tracks[:5]
    assert [data.tracks[n] for n in data.pooled["procap"]] == ["procap_plus", "procap_minus"]


def test_windows_are_drawn_anew_and_avoid_unknown_bases(folder):
    known = files.bases(3, 1500)
    genome = dict.fromkeys(("chr8", "chr9", "chr10"), known) | {"chr1": "N" * 900 + known[900:]}
    data = initiation(files.initiation(folder, genome))
    train = data.split("train")
    shares = [(data.vocabulary.decode_bytes(train[n]["tokens"]).count(b"N")) / 400 for n in range(60)]
    assert 0 < max(shares) <= 0.3
    again = initiation(folder).split("train")
    starts = [train[n]["start"] for n in range(16)]
    assert starts == [again[n]["start"] for n in range(16)] and starts[:8] != starts[8:]
    loader = data.train_dataloader()
    first = sorted(batch["tokens"].numpy().tobytes() for batch in loader)
    loader.epoch = 1
    assert first != sorted(batch["tokens"].numpy().tobytes() for batch in loader)
    few = initiation(folder, max_train_windows=4)
    assert len(few.split("train")) == 4
    # what stands near an N is not scored
    genome["chr8"] = known[:1200] + "N" + known[1201:]
    (folder / "again").mkdir()
    near = initiation(files.initiation(folder / "again", genome)).split("test")
    for item in near:
        if item["id"] == "chr8":
            places = item["start"] + np.flatnonzero(~np.isnan(item["target"][:, 0]))
            assert (places < 1200 - 500).all() or not len(places)


def test_tracks_that_do_not_fit(folder, monkeypatch):
    path = files.initiation(folder)
    own = path / "transcription_initiation_signal_prediction"
    with pytest.raises(DataFileError, match=r"no 'chr10' with at least 1600 bases"):
        initiation(path, max_length=1600).setup()
    with pytest.raises(ConfigError, match=r"data.max_length=402: .*such as 400"):
        initiation(path, max_length=402)
    wig = own / "targets" / TRACKS["cage_plus"]
    kept = wig.read_bytes()
    wig.write_text("no bigWig at all")
    with pytest.raises(DataFileError, match=r"agg\.plus\.bw\.bedgraph\.bw: is no bigWig file"):
        initiation(path).setup()
    wig.unlink()
    with pytest.raises(DataFileError, match=r"agg\.plus\.bw\.bedgraph\.bw: no such file"):
        initiation(path).setup()
    wig.write_bytes(kept)
    files.write_fasta(own / "seqs" / "Homo_sapiens.GRCh38.dna.primary_assembly.fa", {"chr1": "ACGT" * 400, "chr8": "A"})
    with pytest.raises(DataFileError, match=r"'chr1' has 1,500 bases there, and 1,600 in .*another assembly"):
        initiation(path).setup()
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    with pytest.raises(ConfigError, match=r"pip install 'longspan\[bigwig\]'"):
        initiation(path).setup()


def test_what_no_data_of_tracks_can_do(folder):
    with pytest.raises(ConfigError, match=r"data.reverse_complement=True: targets are not turned"):
        ContactMapDataModule(reverse_complement=True)
    with pytest.raises(ConfigError, match=r"data.path=None: give the folder of DNALongBench's data"):
        ContactMapDataModule().setup()
    with pytest.raises(ConfigError, match="is no folder; give the one that holds contact_map_prediction/"):
        ContactMapDataModule(path=str(folder)).setup()
    data = RegulatoryActivityDataModule(path=str(files.activity(folder)), max_length=40)
    with pytest.raises(ConfigError, match="bins lie in windows of 40"):
        data.given_dataloader(["ACGT"])

"""DNALongBench's enhancer-target gene task: sequences as worked out by hand; what does not fit is counted or named."""

import published_files
import pytest

from longspan.config.errors import ConfigError
from longspan.data import DNALongBenchDataModule
from longspan.data.dnalongbench.layout import read_config
from longspan.data.errors import DataFileError
from longspan.report.published import published_for

#                0         10        20        30
GENOME = {"chr1": "AAAAACCCCCGGGGGtttttACGTACGTACCATGCATGCA", "chr2": "ACGTTGCA"}
SIZES = {
    "seq_len_cutoff": 35,
    "tss_flank_upstream": 2,
    "tss_flank_downstream": 2,
    "region_flank_upstream": 1,
    "region_flank_downstream": 1,
}
FORWARD = "chr1 5 20 chr1 30 33 g + r positive"  # TSS 5 with flanks 3 to 8, region with flanks 29 to 34
OTHERS = [f"chr2 0 2 chr2 6 8 g + r negative {subset}" for subset in ("train", "valid", "test")]
FAR = "chr1 39 40"  # an enhancer that is in nobody's way


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))


def made(folder, pairs=(), enhancers=(FAR,), genome=GENOME, others=OTHERS, **sizes):
    lines = [*pairs, *others]
    return str(published_files.enhancer_target_gene(folder, genome, lines, list(enhancers), **{**SIZES, **sizes}))


def sequence(folder, pair, enhancers=(FAR,), **keys):
    sizes = {key: keys.pop(key) for key in SIZES if key in keys}
    path = made(folder, [f"{pair} train"], enhancers, **sizes)
    data = DNALongBenchDataModule(path=path, **{"max_length": 64, **keys})
    return data.vocabulary.decode_bytes(data.split("train")[0]["tokens"]).decode()


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (FORWARD, "AACCCCCGGGGGTTTTTACGTACGTACCATG"),
        ("chr1 3 9 chr1 30 33 g - r positive", "CCCCGGGGGTTTTTACGTACGTACCATG"),  # TSS 8: 6 to 11
        ("chr1 25 35 chr1 2 4 g + r positive", "ACGTACGTAAAAACCCCCGGGGGTTTT"),  # 1 to 28, the other strand
        ("chr1 20 31 chr1 2 4 g - r positive", "ATGGTACGTACGTAAAAACCCCCGGGGGTTTT"),  # TSS 30: 1 to 33, the other strand
        ("chr1 1 31 chr1 10 12 g - r positive", "CGGGGGTTTTTACGTACGTACCAT"),  # the gene holds the region: as it lies
        ("chr2 0 2 chr2 6 8 g + r positive", "NNACGTTGCAN"),  # past both ends
        ("chr2 6 8 chr2 0 2 g + r positive", "NTGCAACGTN"),  # -1 to 9, the other strand
    ],
)
def test_both_strands_and_orders(pair, expected, tmp_path):
    assert sequence(tmp_path, pair) == expected


@pytest.mark.parametrize(
    ("pair", "enhancers", "expected"),
    [
        (FORWARD, ["chr1 12 15", "chr1 20 21"], "AACCCCCGGNNNTTTTTNCGTACGTACCATG"),
        (FORWARD, ["chr1 6 9"], "AACNNNCGGGGGTTTTTACGTACGTACCATG"),  # reaches into what is between: whole
        (FORWARD, ["chr1 3 8", "chr1 29 30", "chr2 3 4"], "AACCCCCGGGGGTTTTTACGTACGTACCATG"),  # none is between
        (FORWARD, ["chr1 26 31"], "AACCCCCGGGGGTTTTTACGTACGTACCATG"),  # the region's own
        ("chr1 20 31 chr1 2 4 g - r positive", ["chr1 10 12"], "ATGGTACGTACGTAAAAACCCNNGGGGGTTTT"),
        ("chr1 10 20 chr1 11 14 g + r positive", ["chr1 8 9"], "CCGGGGG"),  # nothing is between
    ],
)
def test_other_enhancers_between_are_masked(pair, enhancers, expected, tmp_path):
    assert sequence(tmp_path, pair, enhancers) == expected


@pytest.mark.parametrize("keys", [{"max_length": 21}, {"seq_len_cutoff": 21}])
def test_longer_sequences_keep_their_head(keys, tmp_path):
    assert sequence(tmp_path, FORWARD, **keys) == "AACCCCCGGGGGTTTTTACGT"


def test_splits_labels_and_what_is_left_out(tmp_path, capsys):
    pairs = [
        f"{FORWARD} train",
        "chr1 5 20 chr2 3 4 g + r positive train",  # line 3
        "chr1 5 20 chr1 31 33 g + r positive train",  # line 4: 22 bases apart
        "chr1 5 20 chr1 32 33 g + r positive test",
        "chr1 5 20 chr1 30 33 g . r positive valid",  # line 6
    ]
    data = DNALongBenchDataModule(path=made(tmp_path, pairs, seq_len_cutoff=21), batch_size=2, max_length=64)
    told = data.describe()
    assert data.class_names == ["negative", "positive"] and data.split("train")[0]["id"] == "g/r"
    assert [told[split]["classes"] for split in ("train", "validation", "test")] == [
        {"negative": 1, "positive": 1},
        {"negative": 1, "positive": 0},
        {"negative": 1, "positive": 0},
    ]
    assert told["left_out"] == {
        "pairs on two chromosomes": 1,
        "pairs more than 21 bases apart": 2,
        "pairs with a gene on no strand": 1,
    }
    said = capsys.readouterr().err
    assert "2 pairs more than 21 bases apart left out, first" in said and "pairs.tsv, line 4" in said
    batch = next(iter(data.predict_dataloader()))
    assert batch["ids"] == ["g/r"] and "left out" not in capsys.readouterr().err
    (batch,) = data.train_dataloader()
    assert dict(zip(batch["labels"].tolist(), batch["lengths"].tolist(), strict=True)) == {1: 21, 0: 11}


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("chr3 5 20 chr1 30 33 g + r positive train", "'chr3' is not in the FASTA of genome_fa, which has chr1, chr2"),
        ("chr1 5 20 chr3 30 33 g + r positive train", "'chr3' is not in the FASTA"),
        ("chr1 5 20 chr1 30 33 g + r maybe train", "target 'maybe' is unknown; take one of negative, positive"),
        ("chr1 5 20 chr1 30 33 g + r positive dev", "subset 'dev' is unknown; take one of train, valid, test"),
        ("chr1 20 20 chr1 30 33 g + r positive train", "gene_start 20 is not before gene_end 20"),
        ("chr1 5 20 chr1 34 33 g + r positive train", "region_start 34 is not before region_end 33"),
        ("chr1 -5 20 chr1 30 33 g + r positive train", "gene_start '-5' is not a whole number"),
        ("chr1 5 20 chr1 30 41 g + r positive train", "region_end 41 is past the end of 'chr1', 40 bases"),
    ],
)
def test_a_wrong_pair_is_named(pair, reason, tmp_path):
    path = made(tmp_path, [f"{FORWARD} train", pair])
    with pytest.raises(DataFileError, match=r"pairs.tsv, line 3: ") as error:
        DNALongBenchDataModule(path=path).setup()
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("enhancer", "reason"),
    [
        ("chr3 1 2", "'chr3' is not in the FASTA"),
        ("chr2 7 9", "end 9 is past the end of 'chr2', 8 bases"),
        ("chr2 7 7", "start 7 is not before end 7"),
    ],
)
def test_a_wrong_enhancer_is_named(enhancer, reason, tmp_path):
    with pytest.raises(DataFileError, match=r"enhancers.bed.gz, line 2: ") as error:
        DNALongBenchDataModule(path=made(tmp_path, enhancers=[FAR, enhancer])).setup()
    assert reason in str(error.value)


def test_a_subset_or_a_column_that_is_missing(tmp_path):
    path = made(tmp_path, others=OTHERS[:2])
    with pytest.raises(DataFileError, match=r"pairs.tsv: no pair of subset 'test'"):
        DNALongBenchDataModule(path=path).setup()
    file = tmp_path / "enhancer_target_gene" / "pairs.tsv"
    file.write_text(file.read_text().replace("gene_strand", "strand"))
    with pytest.raises(DataFileError, match=r"pairs.tsv, line 1: no column 'gene_strand'"):
        DNALongBenchDataModule(path=path).setup()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("genome.fa str", "genome.fa text", r"config, line 1: type 'text' of 'genome_fa' is unknown; take one of int, float"),
        ("genome.fa str", "genome.fa", r"config, line 1: 2 words where a line is 'key value type'"),
        ("genome.fa str", "hg19.fa str", r"config, line 1: 'genome_fa' names 'hg19.fa', but .* is no file"),
        ("pairs.tsv str", "0 int", r"config, line 2: 'EPI_file' is 0; give a file, of type str"),
        (
            "seq_len_cutoff\t35  int",
            "seq_len_cutoff 30 float",
            r"config, line 4: 'seq_len_cutoff' is 30.0; give a number of bases",
        ),
        ("seq_len_cutoff\t35", "seq_len_cutoff far", r"config, line 4: value 'far' of 'seq_len_cutoff' is no int"),
        ("seq_len_cutoff", "EPI_file", r"config, line 4: key 'EPI_file' is on line 2 already"),
        ("tss_flank_upstream", "tss_flank", r"config: key 'tss_flank_upstream' is missing"),
    ],
)
def test_a_wrong_config_is_named(old, new, reason, tmp_path):
    path = made(tmp_path)
    config = tmp_path / "enhancer_target_gene" / "config" / "CRISPRi_EPI_K562_hg19.config"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(DataFileError, match=rf"CRISPRi_EPI_K562_hg19.{reason}"):
        DNALongBenchDataModule(path=path).setup()


def test_types_of_a_config(tmp_path):
    file = tmp_path / "x.config"
    file.write_text("a 1 int\nb 0.5 float\nc False bool\n\nd x,y list\n")
    assert {key: value for key, (value, _) in read_config(file).items()} == {"a": 1, "b": 0.5, "c": False, "d": ["x", "y"]}
    file.write_text("c perhaps bool\n")
    with pytest.raises(DataFileError, match=r"x.config, line 1: value 'perhaps' of 'c' is no bool"):
        read_config(file)


def test_folders_and_names_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path=None.*enhancer_target_gene/"):
        DNALongBenchDataModule().setup()
    with pytest.raises(ConfigError, match=r"CRISPRi_EPI_K562_hg19.config is no file; give the folder that holds"):
        DNALongBenchDataModule(path=str(tmp_path)).setup()
    with pytest.raises(ConfigError, match=r"data\.dataset='?contacts.*enhancer_target_gene, eqtl"):
        DNALongBenchDataModule(dataset="contacts")
    with pytest.raises(ConfigError, match=r"gtex_hg38.Thyroid.config is no file; give the folder that holds eQTL/"):
        DNALongBenchDataModule(path=str(tmp_path), dataset="eqtl", tissue="Thyroid").setup()
    with pytest.raises(ConfigError, match=r"data\.tissue='?Liver.*Whole_Blood"):
        DNALongBenchDataModule(dataset="eqtl", tissue="Liver")


def test_published_figures_stand_beside():
    named = {"data._target_": "longspan.data.DNALongBenchDataModule", "data.dataset": "enhancer_target_gene"}
    found = published_for(named)
    assert found.metric == "macro_auroc" and found.values["HyenaDNA"] == 0.828 and len(found.values) == 5
    eqtl = {**named, "data.dataset": "eqtl", "data.tissue": "Nerve_Tibial"}
    assert published_for(eqtl).values["Caduceus-Ph"] == 0.841 and "JanusDNA" in published_for(eqtl).source
    assert published_for({**named, "data.dataset": "eqtl", "data.tissue": "Liver"}) is None

"""DNALongBench's eQTL task: both alleles of a variant as worked out by hand; what cannot be is named by its line."""

import published_files
import pytest
import torch

from longspan.config.errors import ConfigError
from longspan.data import DNALongBenchDataModule
from longspan.data.errors import DataFileError

#                0         10        20        30
GENOME = {"chr1": "AAAAACCCCCGGGGGtttttACGTACGTACCATGCATGCA", "chr2": "ACGTTGCA"}
SIZES = {
    "seq_len_cutoff": 35,
    "tss_flank_upstream": 2,
    "tss_flank_downstream": 2,
    "region_flank_upstream": 1,
    "region_flank_downstream": 1,
}
OTHERS = [f"chr2 0 2 chr2 6 7 g + v negative {subset} C G" for subset in ("train", "valid", "test")]
FAR = "chr1 39 40"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))


def made(folder, pairs, variants=(FAR,), **keys):
    sizes = {key: keys.pop(key, value) for key, value in SIZES.items()}
    path = published_files.eqtl(folder, GENOME, [*pairs, *OTHERS], list(variants), **sizes)
    return DNALongBenchDataModule(path=str(path), dataset="eqtl", **{"max_length": 64, **keys})


def alleles(data):
    return [data.vocabulary.decode_bytes(row).decode() for row in data.split("train")[0]["tokens"]]


@pytest.mark.parametrize(
    ("pair", "variants", "expected"),
    [
        # gene from 3 to 8, variant from 29 to 32
        ("chr1 5 20 chr1 30 31 g + v", [FAR], ["AACCCCCGGGGGTTTTTACGTACGTACCA", "AACCCCCGGGGGTTTTTACGTACGTACGA"]),
        # its own place does not lie between the two, another does
        (
            "chr1 5 20 chr1 30 31 g + v",
            ["chr1 12 15", "chr1 30 31"],
            ["AACCCCCGGNNNTTTTTACGTACGTACCA", "AACCCCCGGNNNTTTTTACGTACGTACGA"],
        ),
        # what reaches out of the sequence stays
        ("chr1 5 20 chr1 30 31 g + v", ["chr1 1 10"], ["AACCCCCGGGGGTTTTTACGTACGTACCA", "AACCCCCGGGGGTTTTTACGTACGTACGA"]),
    ],
)
def test_a_base_exchanged(pair, variants, expected, tmp_path):
    assert alleles(made(tmp_path, [f"{pair} positive train C G"], variants)) == expected


def test_bases_gained_and_lost(tmp_path):
    gained = made(tmp_path / "a", ["chr1 5 20 chr1 30 31 g + v positive train C GTT"])
    assert alleles(gained) == ["AACCCCCGGGGGTTTTTACGTACGTACCA", "AACCCCCGGGGGTTTTTACGTACGTACGTTA"]
    lost = made(tmp_path / "b", ["chr1 5 20 chr1 30 33 g + v positive train CAT C"])
    assert alleles(lost) == ["AACCCCCGGGGGTTTTTACGTACGTACCATG", "AACCCCCGGGGGTTTTTACGTACGTACCG"]


def test_a_gene_downstream_is_read_from_the_other_strand(tmp_path):
    data = made(tmp_path, ["chr1 25 35 chr1 2 3 g + v positive train A T"])
    assert alleles(data) == ["ACGTACGTAAAAACCCCCGGGGGTTTT", "ACGTACGTAAAAACCCCCGGGGGTTAT"]


@pytest.mark.parametrize("keys", [{"max_length": 28}, {"seq_len_cutoff": 28}])
def test_longer_ones_keep_their_head(keys, tmp_path):
    data = made(tmp_path, ["chr1 5 20 chr1 30 31 g + v positive train C GTT"], **keys)
    assert alleles(data) == ["AACCCCCGGGGGTTTTTACGTACGTACC", "AACCCCCGGGGGTTTTTACGTACGTACG"]


def test_batches_hold_the_two_of_a_pair_one_after_the_other(tmp_path):
    data = made(tmp_path, ["chr1 5 20 chr1 30 31 g + v positive train C GTT"], batch_size=2, pad_to_multiple=16)
    (batch,) = data.train_dataloader()
    assert batch["tokens"].shape == (4, 32) and batch["labels"].sum() == 1 and data.tasks == ("pair_classification",)
    first = 2 * int(batch["labels"].argmax())
    assert batch["lengths"][first : first + 2].tolist() == [29, 31] and sorted(batch["widths"]) == [16, 32]
    assert data.describe()["tissue"] == "Whole_Blood"
    with pytest.raises(ConfigError, match=r"sequences.*reads no sequences"):
        data.given_dataloader(["ACGT"])


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("chr1 5 20 chr1 30 31 g + v positive train A G", r"allele1 'A' is not what the genome has at chr1:30-31, 'C'"),
        ("chr1 5 20 chr1 30 32 g + v positive train C G", r"allele1 'C' is not what the genome has at chr1:30-32, 'CA'"),
        ("chr1 5 20 chr1 30 31 g + v positive train C <DEL>", r"allele2 '<DEL>' is no bases"),
        ("chr1 5 20 chr1 30 31 g + v positive held C G", r"subset 'held' is unknown"),
    ],
)
def test_a_wrong_row_is_named(pair, said, tmp_path):
    with pytest.raises(DataFileError, match=r"pairs.tsv, line 2: ") as error:
        made(tmp_path, [pair]).setup()
    assert said in str(error.value)


def test_a_table_without_alleles_is_named(tmp_path):
    data = made(tmp_path, [])
    file = tmp_path / "eQTL" / "pairs.tsv"
    file.write_text(file.read_text().replace("allele2", "other"))
    with pytest.raises(DataFileError, match=r"pairs.tsv, line 1: no column 'allele2'"):
        data.setup()


def test_pairs_of_unequal_width_are_each_read_at_their_own():
    """Attention that hangs on the padded length sees each pair at the width that it would have alone."""
    from longspan.tasks import PairClassification

    class Backbone(torch.nn.Module):
        depends_on_padding = True

    task = PairClassification.__new__(PairClassification)
    torch.nn.Module.__init__(task)
    seen = []

    def model(tokens, lengths=None, segments=None):
        seen.append((tokens[:, 0].tolist(), tokens.shape[1]))
        return tokens[::2, :1].repeat(1, 2)

    model.backbone = Backbone()
    task.__dict__["model"] = model
    task.num_classes, task.training = 2, False
    tokens = torch.arange(6)[:, None].repeat(1, 32)
    batch = {"tokens": tokens, "lengths": torch.full((6,), 10), "widths": [32, 16, 32]}
    logits = task._read(batch)
    assert seen == [([2, 3], 16), ([0, 1, 4, 5], 32)] and logits[:, 0].tolist() == [0, 2, 4]

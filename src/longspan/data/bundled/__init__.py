"""The data that ships with Longspan; PROVENANCE.md beside this file says where each file comes from."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent

ADDRESSES = FOLDER / "union_addresses.jsonl.xz"
HIV1 = FOLDER / "hiv1_genomes.tsv.xz"
# name -> (FASTA, BED)
GENOMES: dict[str, tuple[Path, Path]] = {
    "h37rv": (FOLDER / "mtb_h37rv.fa.xz", FOLDER / "mtb_h37rv.bed.xz"),
    "msmeg": (FOLDER / "msmeg_mc2_155.fa.xz", FOLDER / "msmeg_mc2_155.bed.xz"),
}

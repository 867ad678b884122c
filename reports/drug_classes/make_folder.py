"""Makes the folder of FASTA that this report was trained on: a folder a class of HIV drugs, and in it a file a subtype.

    python reports/drug_classes/make_folder.py outputs/drug_classes

From each of the bundled HIV-1 genomes comes one stretch of 256 bases, anywhere in what each class of drugs acts on. Places are
those of HXB2, counted from the beginning of gag and env and from the end of pol and env, so that inserted bases elsewhere do
not move them. Subtypes, and recombinant forms, are files, so that `data.group_column=file` holds whole ones out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from longspan.data import bundled
from longspan.data.readers import read_csv

BASES = 256
# (gene, first base, base after the last); negative: from the gene's end
TARGETS = {
    "attachment_inhibitors": ("env", 0, 1400),  # gp120
    "capsid_inhibitors": ("gag", 396, 1089),  # p24
    "fusion_inhibitors": ("env", -1038, -1),  # gp41
    "integrase_inhibitors": ("pol", -867, -1),
    "protease_inhibitors": ("pol", -2844, -2547),
    "reverse_transcriptase_inhibitors": ("pol", -2547, -1227),  # p51
}


def main(folder: Path) -> None:
    random, counts = np.random.default_rng(0), dict.fromkeys(TARGETS, 0)
    for row in read_csv(bundled.HIV1, "\t"):
        places = {name: (int(start), int(end)) for name, start, end in re.findall(r"(\w+):(\d+)-(\d+)", row.values["genes"])}
        for target, (gene, first, after) in TARGETS.items():
            if gene not in places:
                continue
            bases = row.values["sequence"][places[gene][0] - 1 : places[gene][1]][first:after]
            if len(bases) < BASES:
                continue
            at = int(random.integers(len(bases) - BASES + 1))
            file = folder / target / f"{row.values['subtype']}.fna"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as out:
                out.write(f">{row.values['accession']}\n{bases[at : at + BASES]}\n")
            counts[target] += 1
    print("\n".join(f"{target}: {count} stretches" for target, count in counts.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

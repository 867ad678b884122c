"""Makes the folder of FASTA that this report was trained on: a folder a drug class, and in it a file a family of genes.

    python reports/drug_classes/make_folder.py SEQUENCES FOLDER

SEQUENCES: db/resfinder/sequences of https://github.com/tseemann/abricate at 947a460, 3,206 genes of ResFinder
(doi:10.1093/jac/dkaa345), whose headers name the drugs that each resists. A family is what single linkage joins: genes that
share at least 15 % of their words of ten bases, as genes do that are equal in some 83 % of their bases. Families of several
classes, and classes of fewer than 30 genes, are left out and counted.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

WORD = 10  # bases
SHARED = 0.15  # of the words of the gene that has fewer
FEWEST = 30  # genes of a class
DRUGS = {
    "aminoglycoside": "Amikacin Apramycin Astromicin Dibekacin Fortimicin Gentamicin Hygromycin Kanamycin Kasugamycin Neomycin "
    "Netilmicin Paromomycin Ribostamycin Sisomicin Spectinomycin Streptomycin Tobramycin",
    "beta-lactam": "Amoxicillin Ampicillin Aztreonam Cefepime Cefotaxime Cefoxitin Ceftazidime Imipenem Meropenem Penicillin "
    "Piperacillin Ticarcillin",
    "colistin": "Colistin",
    "fosfomycin": "Fosfomycin",
    "glycopeptide": "Vancomycin Teicoplanin",
    "macrolide": "Azithromycin Clindamycin Dalfopristin Erythromycin Lincomycin Oleandomycin Quinupristin Spiramycin Tylosin",
    "phenicol": "Chloramphenicol Florfenicol",
    "quinolone": "Ciprofloxacin Fluoroquinolone",
    "sulphonamide": "Sulfamethoxazole",
    "tetracycline": "Tetracycline Doxycycline Minocycline Tigecycline",
    "trimethoprim": "Trimethoprim",
}
CLASS_OF = {drug: name for name, drugs in DRUGS.items() for drug in drugs.split()}


def read(file: Path) -> list[tuple[str, str, str]]:
    """(gene, class, bases) of each record whose drugs are all of one class that is known."""
    genes = []
    for record in file.read_text().split(">")[1:]:
        header, *lines = record.splitlines()
        _, gene, accession, drugs = header.split("~~~")
        classes = {CLASS_OF[drug] for drug in drugs.split()[0].split(";") if drug in CLASS_OF}
        if len(classes) == 1:
            genes.append((f"{gene}_{accession}", classes.pop(), "".join(lines).upper()))
    return genes


def families(sequences: list[str]) -> np.ndarray:
    """[N], the family of each sequence."""
    numbers, rows, columns = {}, [], []
    for row, bases in enumerate(sequences):
        words = {bases[n : n + WORD] for n in range(len(bases) - WORD + 1)}
        columns += [numbers.setdefault(word, len(numbers)) for word in words]
        rows += [row] * len(words)
    held = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)))
    shared = (held @ held.T).tocoo()
    sizes = np.asarray(held.sum(1)).ravel()
    near = shared.data >= SHARED * np.minimum(sizes[shared.row], sizes[shared.col])
    joined = csr_matrix((np.ones(near.sum()), (shared.row[near], shared.col[near])), shape=shared.shape)
    return connected_components(joined, directed=False)[1]


def main(file: Path, folder: Path) -> None:
    genes = read(file)
    of = families([bases for _, _, bases in genes])
    classes = defaultdict(set)
    for (_, name, _), family in zip(genes, of, strict=True):
        classes[family].add(name)
    kept = [(*gene, family) for gene, family in zip(genes, of, strict=True) if len(classes[family]) == 1]
    counts = Counter(name for _, name, _, _ in kept)
    print(f"{len(genes)} genes of one class, {len(genes) - len(kept)} of them in families of several, left out")
    for name, count in sorted(counts.items()):
        members = [(gene, bases, family) for gene, of_gene, bases, family in kept if of_gene == name]
        print(f"{name}: {count} genes, {len({family for *_, family in members})} families" + ", left out" * (count < FEWEST))
        if count < FEWEST:
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
        for gene, bases, family in members:
            with (folder / name / f"family{family:04}.fsa").open("a") as out:
                out.write(f">{gene}\n{bases}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

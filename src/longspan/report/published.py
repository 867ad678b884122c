"""Published figures of the benchmarks that are run here, to stand beside a report's own.

They were made by other models, trained otherwise and longer: they say what a figure means, not who wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

D = "longspan.data."
LRA = "Long Range Arena, arXiv:2011.04006"
GENOMIC = "Genomic Benchmarks, doi:10.1186/s12863-023-01123-8, and HyenaDNA, arXiv:2306.15794"
DNALONGBENCH = "DNALongBench, arXiv:2501.01945"
# the authors' tables; metrics of each task are those of their configs/dataset/nucleotide_transformer.yaml
JANUS = "JanusDNA, arXiv:2505.17257, README of github.com/Qihao-Duan/JanusDNA at 03cd86e"
MODELS = (
    "Local",
    "Linear Transformer",
    "Reformer",
    "Sparse Transformer",
    "Sinkhorn",
    "Linformer",
    "Performer",
    "Synthesizer",
    "Longformer",
    "Transformer",
    "BigBird",
)
# accuracy in percent, in the order of MODELS
LRA_ACCURACY = {
    "listops": (15.82, 16.13, 37.27, 17.07, 33.67, 35.70, 18.01, 36.99, 35.63, 36.37, 36.05),
    "text": (52.98, 65.90, 56.10, 63.58, 61.20, 53.94, 65.40, 61.68, 62.85, 64.27, 64.02),
    "retrieval": (53.39, 53.09, 53.40, 59.59, 53.83, 52.27, 53.82, 54.67, 56.89, 57.46, 59.29),
    "image": (41.46, 42.34, 38.07, 44.24, 41.23, 38.56, 42.77, 41.61, 42.22, 42.44, 40.83),
    "pathfinder": (66.63, 75.30, 68.50, 71.71, 67.45, 76.34, 77.05, 69.45, 69.71, 71.40, 74.87),
}
# top-1 accuracy in percent of (a convolutional network, HyenaDNA)
GENOMIC_ACCURACY = {
    "dummy_mouse_enhancers_ensembl": (69.0, 85.1),
    "demo_coding_vs_intergenomic_seqs": (87.6, 91.3),
    "demo_human_or_worm": (93.0, 96.6),
    "human_enhancers_cohn": (69.5, 74.2),
    "human_enhancers_ensembl": (68.9, 89.2),
    "human_ensembl_regulatory": (93.3, 93.8),
    "human_nontata_promoters": (84.6, 96.6),
    "human_ocr_ensembl": (68.0, 80.9),
}
# AUROC of the enhancer-target gene task, from the paper's table
ENHANCER_AUROC = {
    "Expert model (ABC)": 0.926,
    "CNN": 0.797,
    "HyenaDNA": 0.828,
    "Caduceus-Ph": 0.826,
    "Caduceus-PS": 0.821,
}
# Matthews correlation of (JanusDNA and JanusDNA with an MLP, each with and without attention in the middle); of splice sites of
# all kinds accuracy. Promoters, acceptors and donors are scored there by the F1 of one class, which is not in a record here.
NUCLEOTIDE_TRANSFORMER = {
    "H3": (0.821, 0.824, 0.835, 0.831),
    "H3K14ac": (0.665, 0.685, 0.729, 0.718),
    "H3K36me3": (0.658, 0.670, 0.702, 0.699),
    "H3K4me1": (0.563, 0.571, 0.615, 0.616),
    "H3K4me2": (0.509, 0.548, 0.589, 0.586),
    "H3K4me3": (0.605, 0.629, 0.688, 0.675),
    "H3K79me3": (0.716, 0.727, 0.747, 0.743),
    "H3K9ac": (0.641, 0.639, 0.673, 0.661),
    "H4": (0.809, 0.816, 0.812, 0.813),
    "H4ac": (0.637, 0.653, 0.698, 0.705),
    "enhancers": (0.564, 0.535, 0.559, 0.542),
    "enhancers_types": (0.462, 0.470, 0.503, 0.492),
    "splice_sites_all": (0.963, 0.960, 0.967, 0.943),
}
# macro AUROC by FROZEN_MODELS, each with its weights as pretrained and a classifier of mean embeddings above them (tables 1 to
# 3). Splice sites and covid are not among their tasks.
FROZEN = "frozen models, benchmarked in doi:10.1038/s41467-025-65823-8 (their embeddings, mean pooled)"
FROZEN_MODELS = ("DNABERT-2", "NT-v2", "HyenaDNA", "Caduceus-Ph", "GROVER")
GUE_AUROC = {
    "emp_H3": (0.9137, 0.8951, 0.8996, 0.9285, 0.9056),
    "emp_H3K14ac": (0.7597, 0.7407, 0.7067, 0.7297, 0.7301),
    "emp_H3K36me3": (0.7989, 0.7849, 0.7395, 0.7662, 0.7533),
    "emp_H3K4me1": (0.7306, 0.7115, 0.6994, 0.7071, 0.696),
    "emp_H3K4me2": (0.7078, 0.6847, 0.6854, 0.6895, 0.6939),
    "emp_H3K4me3": (0.6813, 0.6603, 0.6486, 0.6595, 0.668),
    "emp_H3K79me3": (0.8565, 0.8436, 0.8215, 0.845, 0.8427),
    "emp_H3K9ac": (0.7922, 0.7687, 0.7555, 0.7779, 0.7692),
    "emp_H4": (0.9314, 0.9104, 0.8983, 0.9304, 0.908),
    "emp_H4ac": (0.7473, 0.7263, 0.6979, 0.7235, 0.7175),
    "human_tf_0": (0.8382, 0.8315, 0.8301, 0.8796, 0.8618),
    "human_tf_1": (0.821, 0.809, 0.8205, 0.8687, 0.8495),
    "human_tf_2": (0.7896, 0.7974, 0.7875, 0.8249, 0.8158),
    "human_tf_3": (0.726, 0.7103, 0.7149, 0.7725, 0.763),
    "human_tf_4": (0.9204, 0.9149, 0.9159, 0.9294, 0.931),
    "mouse_0": (0.711, 0.704, 0.5899, 0.6841, 0.6947),
    "mouse_1": (0.9072, 0.9005, 0.8996, 0.9472, 0.9093),
    "mouse_2": (0.9308, 0.9269, 0.8944, 0.9351, 0.9327),
    "mouse_3": (0.7622, 0.6942, 0.588, 0.7047, 0.6815),
    "mouse_4": (0.6783, 0.7077, 0.627, 0.715, 0.6822),
    "prom_300_all": (0.9426, 0.9445, 0.9394, 0.9519, 0.9402),
    "prom_300_notata": (0.9765, 0.9758, 0.9662, 0.9834, 0.9728),
    "prom_300_tata": (0.7646, 0.7791, 0.8077, 0.76, 0.78),
    "prom_core_all": (0.8311, 0.8527, 0.832, 0.8748, 0.8506),
    "prom_core_notata": (0.8531, 0.8729, 0.8516, 0.8961, 0.8704),
    "prom_core_tata": (0.7781, 0.7947, 0.7827, 0.8103, 0.796),
}
JANUS_MODELS = ("JanusDNA", "JanusDNA without attention", "JanusDNA MLP", "JanusDNA MLP without attention")
# AUROC of the eQTL task by (Caduceus-Ph, JanusDNA without attention, the same with an MLP), as JanusDNA's authors ran it
EQTL_AUROC = {
    "Artery_Tibial": (0.690, 0.802, 0.851),
    "Adipose_Subcutaneous": (0.759, 0.740, 0.768),
    "Cells_Cultured_fibroblasts": (0.689, 0.770, 0.801),
    "Muscle_Skeletal": (0.789, 0.803, 0.864),
    "Nerve_Tibial": (0.841, 0.877, 0.913),
    "Skin_Not_Sun_Exposed_Suprapubic": (0.812, 0.874, 0.903),
    "Skin_Sun_Exposed_Lower_leg": (0.691, 0.706, 0.845),
    "Thyroid": (0.703, 0.752, 0.792),
    "Whole_Blood": (0.768, 0.794, 0.821),
}


@dataclass(frozen=True)
class Published:
    """A metric's published values, by model, each from 0 to 1, and where they stand."""

    metric: str
    values: Mapping[str, float]
    source: str


def published_for(settings: Mapping[str, Any]) -> Published | None:
    """What was published on the data that a run's flat settings name, where this project knows it."""
    target = str(settings.get("data._target_", "")).removeprefix(D)
    task = {"ListOpsDataModule": "listops", "RetrievalDataModule": "retrieval"}.get(target)
    if target == "PathfinderDataModule" and settings.get("data.input") == "pixels" and settings.get("data.side") == 32:
        task = "pathfinder"
    if target == "SequenceClassificationDataModule" and "imdb" in str(settings.get("data.name")).lower():
        task = "text" if settings.get("data.vocabulary") == "bytes" else None
    if target == "ImageClassificationDataModule" and settings.get("data.input") == "pixels":
        named = f"{settings.get('data.name')} {settings.get('data.path')}".lower()
        task = "image" if "cifar" in named else None
    if task is not None:
        values = dict(zip(MODELS, (value / 100 for value in LRA_ACCURACY[task]), strict=True))
        return Published("accuracy", values, LRA)
    if target == "GenomicBenchmarkDataModule" and settings.get("data.dataset") in GENOMIC_ACCURACY:
        convolution, hyena = GENOMIC_ACCURACY[str(settings["data.dataset"])]
        return Published("accuracy", {"CNN": convolution / 100, "HyenaDNA": hyena / 100}, GENOMIC)
    if target == "GenomicBenchmarkDataModule" and settings.get("data.benchmark") == "nucleotide_transformer":
        named = str(settings.get("data.dataset"))
        if named in NUCLEOTIDE_TRANSFORMER:
            metric = "accuracy" if named == "splice_sites_all" else "mcc"
            return Published(metric, dict(zip(JANUS_MODELS, NUCLEOTIDE_TRANSFORMER[named], strict=True)), JANUS)
    of_gue = target == "GenomicBenchmarkDataModule" and settings.get("data.benchmark") == "gue"
    if of_gue and (row := GUE_AUROC.get(str(settings.get("data.dataset")))) is not None:
        return Published("macro_auroc", dict(zip(FROZEN_MODELS, row, strict=True)), FROZEN)
    if target == "DNALongBenchDataModule" and settings.get("data.dataset") == "enhancer_target_gene":
        return Published("macro_auroc", ENHANCER_AUROC, DNALONGBENCH)
    if (
        target == "DNALongBenchDataModule"
        and settings.get("data.dataset") == "eqtl"
        and settings.get("data.tissue") in EQTL_AUROC
    ):
        names = ("Caduceus-Ph", "JanusDNA without attention", "JanusDNA MLP without attention")
        return Published("macro_auroc", dict(zip(names, EQTL_AUROC[str(settings["data.tissue"])], strict=True)), JANUS)
    return None


def of_section(section: Any) -> Published | None:
    """What was published on a section's data; all its groups share it."""
    return next((found for group in section.groups if (found := published_for(group.settings)) is not None), None)


def lines_of(found: Published) -> list[str]:
    """A Markdown table, best first, and its source."""
    ordered = sorted(found.values.items(), key=lambda item: -item[1])
    rows = [f"| {name} | {value:.4f} |" for name, value in ordered]
    return [f"| published | {found.metric} |", "| :-- | --: |", *rows, "", f"Published figures: {found.source}."]

"""DNA benchmarks: read from small folders of the published layouts; splits hold; wrong files are named."""

import published_files
import pytest

from longspan.config.errors import ConfigError
from longspan.data import GenomicBenchmarkDataModule
from longspan.data.errors import DataFileError
from longspan.data.genomics import BENCHMARKS
from longspan.report.published import GUE_AUROC, NUCLEOTIDE_TRANSFORMER, published_for


@pytest.mark.parametrize(("benchmark", "count"), [("genomic_benchmarks", 9), ("nucleotide_transformer", 18), ("gue", 28)])
def test_every_data_set_is_there(benchmark, count):
    assert len(BENCHMARKS[benchmark].datasets) == count


EACH = pytest.mark.parametrize(
    ("benchmark", "dataset", "make"),
    [
        ("genomic_benchmarks", "human_nontata_promoters", published_files.genomic_benchmarks),
        ("nucleotide_transformer", "H3", published_files.nucleotide_transformer),
        ("gue", "prom_300_all", published_files.gue),
    ],
)


@EACH
def test_published_folders(benchmark, dataset, make, tmp_path):
    data = GenomicBenchmarkDataModule(
        benchmark=benchmark, dataset=dataset, path=str(make(tmp_path)), max_length=40, batch_size=3
    )
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == (3, 40) and set(batch["labels"].tolist()) <= {0, 1}
    told = data.describe()
    assert told["train"]["sequences"] + told["validation"]["sequences"] >= 16 and told["test"]["sequences"] == 8
    tokens = [{data.split(s)[n]["tokens"].tobytes() for n in range(len(data.split(s)))} for s in ("train", "validation")]
    assert not tokens[0] & tokens[1]


def test_wrong_files_and_names(tmp_path):
    folder = published_files.genomic_benchmarks(tmp_path)
    file = folder / "human_nontata_promoters" / "test" / "negative" / "0.txt"
    file.write_text("ACGTJ")
    with pytest.raises(DataFileError, match=r"0.txt, line 1: 'J' \(character 5\) is no base"):
        GenomicBenchmarkDataModule(path=str(folder)).setup()
    with pytest.raises(ConfigError, match="dataset"):
        GenomicBenchmarkDataModule(dataset="human_nontata")
    with pytest.raises(ConfigError, match="is no folder; give the folder that holds the benchmark's data sets"):
        GenomicBenchmarkDataModule(path=str(tmp_path / "nowhere")).setup()


def test_published_figures_stand_beside():
    base = {"data._target_": "longspan.data.GenomicBenchmarkDataModule", "data.dataset": "human_or_worm"}
    assert published_for(base) is None
    assert published_for({**base, "data.dataset": "demo_human_or_worm"}).values["HyenaDNA"] == pytest.approx(0.966)
    yeast = {**base, "data.benchmark": "nucleotide_transformer", "data.dataset": "H3K4me3"}
    assert published_for(yeast).metric == "mcc" and published_for(yeast).values["JanusDNA MLP"] == 0.688
    splice = published_for({**yeast, "data.dataset": "splice_sites_all"})
    assert splice.metric == "accuracy" and len(splice.values) == 4
    assert published_for({**yeast, "data.dataset": "promoter_tata"}) is None  # scored there by another F1
    assert set(GUE_AUROC) <= set(BENCHMARKS["gue"].datasets)
    assert set(NUCLEOTIDE_TRANSFORMER) <= set(BENCHMARKS["nucleotide_transformer"].datasets)
    gue = published_for({**yeast, "data.benchmark": "gue", "data.dataset": "emp_H3"})
    assert gue.metric == "macro_auroc" and gue.values["Caduceus-Ph"] == pytest.approx(0.9285) and "10.1038" in gue.source
    assert set(BENCHMARKS["gue"].datasets) - set(GUE_AUROC) == {"splice_reconstructed", "virus_covid"}
    assert published_for({**yeast, "data.benchmark": "gue", "data.dataset": "virus_covid"}) is None
    listops = published_for({"data._target_": "longspan.data.ListOpsDataModule"})
    assert listops.values["Reformer"] == pytest.approx(0.3727) and len(listops.values) == 11


@EACH
def test_longer_sequences_keep_their_head_and_are_counted(benchmark, dataset, make, tmp_path):
    path = str(make(tmp_path))
    whole = GenomicBenchmarkDataModule(benchmark=benchmark, dataset=dataset, path=path, max_length=600)
    short = GenomicBenchmarkDataModule(benchmark=benchmark, dataset=dataset, path=path, max_length=16)
    assert short.describe()["test"]["cut"] == len(whole.split("test")) and whole.describe()["train"]["cut"] == 0
    heads = sorted(bytes(item["tokens"][:16]) for split in ("train", "validation") for item in whole.split(split))
    assert heads == sorted(bytes(item["tokens"]) for split in ("train", "validation") for item in short.split(split))
    assert next(iter(short.train_dataloader()))["tokens"].shape[1] == 16

"""Species from a folder of genomes: even draws, no base of training in a held-out window, names of a folder or a file."""

import numpy as np
import pytest

from longspan.config.errors import ConfigError
from longspan.data import SpeciesDataModule


def genomes(folder, deep):
    rng = np.random.default_rng(0)
    for name, sizes in (("ecoli", [3000, 1000]), ("mtb", [2500]), ("yeast", [500, 900, 700])):
        records = "".join(f">chr{n}\n{''.join(rng.choice(list('ACGT'), size))}\n" for n, size in enumerate(sizes, 1))
        path = folder / name / "all.fna" if deep else folder / f"{name}.fna"
        path.parent.mkdir(exist_ok=True)
        path.write_text(records)
    return str(folder)


@pytest.mark.parametrize("deep", [False, True])
def test_windows_of_every_species(tmp_path, deep):
    data = SpeciesDataModule(genomes(tmp_path, deep), max_length=64, batch_size=4, epoch_windows=300, max_test_windows=6)
    data.setup()
    assert data.class_names == ["ecoli", "mtb", "yeast"] and len(data.split("train")) == 300
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == (4, 64) and batch["labels"].shape == (4,)
    seen = {}
    train = data.split("train")
    for index in range(900):
        item = train[index]
        assert item["id"].split("/")[0].split(".")[0] == data.class_names[item["target"]]
        seen.setdefault(item["id"], set()).update(range(item["start"], item["start"] + len(item["tokens"])))
    counts = np.bincount([train[index]["target"] for index in range(900)])
    assert (np.abs(counts - 300) < 5 * 15).all()
    for split in ("validation", "test"):
        held = data.split(split)
        assert set(held.targets.tolist()) == {0, 1, 2} and (split != "test" or len(held) == 6)
        for index in range(len(held)):
            item = held[index]
            assert not seen.get(item["id"], set()) & set(range(item["start"], item["start"] + len(item["tokens"])))
    assert data.baselines()["accuracy"] == pytest.approx(1 / 3) and data.describe()["test"]["windows"] == 6


def test_a_folder_is_needed_and_enough_of_each_species(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path=None"):
        SpeciesDataModule()
    with pytest.raises(ConfigError, match=r"data\.test_chromosomes=.*no record chr3"):
        SpeciesDataModule(genomes(tmp_path, False), test_chromosomes=["chr3"]).setup()

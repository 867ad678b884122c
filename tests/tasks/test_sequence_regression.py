"""Regression: figures against scipy, numbers from tables, a run that learns and predicts in the targets' units."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config.compose import config_for
from longspan.config.errors import ConfigError
from longspan.data import DataFileError, SequenceRegressionDataModule
from longspan.tasks.regression_metrics import regression_metrics


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 2**16), st.booleans())
def test_figures_against_scipy(rows, numbers, seed, ties):
    rng = np.random.default_rng(seed)
    said, right = rng.normal(size=(2, rows, numbers)).astype(np.float32)
    if ties:
        said, right = np.round(said), np.round(right)
    metrics = regression_metrics(numbers)
    for name, metric in metrics.items():
        for part in np.array_split(np.arange(rows), 3):
            if len(part):
                metric.update(torch.from_numpy(said[part]), torch.from_numpy(right[part]))
        wanted = {"mse": lambda a, b: ((a - b) ** 2).mean(), "mae": lambda a, b: np.abs(a - b).mean()}.get(name)
        columns = []
        for a, b in zip(said.T.astype(float), right.T.astype(float), strict=True):
            flat = np.ptp(a) == 0 or np.ptp(b) == 0
            if wanted:
                columns.append(wanted(a, b))
            elif name == "r2":
                columns.append(0.0 if np.ptp(b) == 0 else 1 - ((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum())
            else:
                kind = scipy.stats.spearmanr if name == "spearman" else scipy.stats.pearsonr
                columns.append(0.0 if flat else kind(a, b).statistic)
        assert float(metric.compute()) == pytest.approx(np.mean(columns), abs=1e-5, rel=1e-6)


def table(folder, columns=("score",), rows=40):
    values = [",".join(str(10 + (n % 7) * (k + 1)) for k in range(len(columns))) for n in range(rows)]
    lines = [f"{'ab'[n % 2] * (1 + n % 7)} number {n},{values[n]}" for n in range(rows)]
    (folder / "x.csv").write_text("\n".join([f"text,{','.join(columns)}", *lines]) + "\n")
    return str(folder / "x.csv")


def test_numbers_from_a_table(tmp_path):
    data = SequenceRegressionDataModule(table(tmp_path, ("a", "b")), label_columns=["a", "b"], max_length=16)
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].shape == (8, 2) and batch["labels"].dtype == torch.float32
    assert data.columns == ("a", "b") and data.describe()["numbers"] == ["a", "b"]
    targets = data.split("test").targets
    error = targets - np.array(data.target_mean)
    assert data.baselines()["mse"] == pytest.approx(float((error**2).mean())) and data.baselines()["spearman"] == 0.0
    path = table(tmp_path)
    (tmp_path / "x.csv").write_text((tmp_path / "x.csv").read_text() + "c,high\nd,nan\n")
    with pytest.raises(DataFileError, match=r"x\.csv, line 42: column 'score' holds 'high', which is no number .and 1 more"):
        SequenceRegressionDataModule(path, label_column="score", max_length=16).setup()
    with pytest.raises(ConfigError, match=r"data\.path=None: name your own files"):
        SequenceRegressionDataModule(max_length=16)


def test_a_run_writes_its_figures_and_predicts(tmp_path):
    import json

    from longspan import load
    from longspan.training.run import run

    words = [
        "data=regression",
        f"data.path={table(tmp_path)}",
        "data.label_column=score",
        "data.max_length=16",
        "data.batch_size=4",
        "task=sequence_regression",
        "model.layers=1",
        "model.width=32",
        "model.heads=2",
        "attention=local",
        "attention.window=8",
        "trainer.max_steps=3",
        "logger=none",
        "callbacks.progress=null",
    ]
    run(config_for(words, tmp_path / "run", Path(__file__).parents[2] / "conf"))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "complete" and {"test/spearman", "spearman"} & set(record["accuracy"])
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    rows = load(checkpoint).predict(["aaa number 1", "bb number 2"])
    assert [set(row) for row in rows] == [{"id", "score"}] * 2
    assert all(0 < row["score"] < 30 for row in rows)  # near the training data, whose mean is 13

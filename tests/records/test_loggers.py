"""TensorBoard and MLflow beside W&B: figures, config and one run over a resume, and nothing but files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TinyData, TinyTask, tiny_trainer

from longspan.config.command_line import check_job
from longspan.config.errors import ConfigError
from longspan.cost.measured import MeasuredCost
from longspan.records import RecordWriter, mlflow_logger
from longspan.training.build import build_named

CONF = Path(__file__).parents[2] / "conf"


def loggers_of(word: str, folder: Path, *more: str):
    return build_named(check_job(CONF, [word, *more], output_dir=folder), "logger")


def run(folder: Path, loggers) -> None:
    config = {"attention_name": "local", "seed": 3, "data": {"max_length": 64}, "logger": {"x": 1}}
    with RecordWriter(folder / "record.json", config=config) as record:
        trainer = tiny_trainer(folder, [MeasuredCost(warmup_steps=2), record], logger=loggers)
        trainer.fit(TinyTask(), TinyData())
        trainer.test(TinyTask(), TinyData(), verbose=False)


def test_several_loggers_are_a_list_and_each_has_the_figures(tmp_path):
    loggers = loggers_of("logger=[csv,tensorboard]", tmp_path)
    assert [type(logger).__name__ for logger in loggers] == ["CSVLogger", "TensorBoardLogger"]
    run(tmp_path, loggers)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"val/accuracy", "test/accuracy", "accuracy/accuracy", "cost/total_flops", "train/loss"} <= set(
        events.Tags()["scalars"]
    )
    assert events.Scalars("test/accuracy")[0].value == pytest.approx(0.75)
    written = (tmp_path / "tensorboard" / "hparams.yaml").read_text()
    assert "max_length: 64" in written and "logger" not in written
    assert "test/accuracy" in (tmp_path / "csv" / "metrics.csv").read_text()


def test_the_default_and_one_more(tmp_path):
    names = [type(logger).__name__ for logger in loggers_of("logger=[default,tensorboard]", tmp_path)]
    assert names == ["CSVLogger", "WandbLogger", "TensorBoardLogger"]


def test_a_wrong_logger_among_several_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"logger=tensorbord is not a choice of logger. Did you mean logger=tensorboard"):
        loggers_of("logger=[csv,tensorbord]", tmp_path)


@pytest.mark.slow  # importing mlflow takes seconds
def test_mlflow_keeps_its_run_in_the_folder_and_sends_no_usage_figures(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the tables of a new SQLite file take seconds to make
    (default,) = loggers_of("logger=mlflow", tmp_path / "run")
    assert default._tracking_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    store = f"file:{tmp_path / 'mlruns'}"
    for _ in range(2):  # the second goes on in the run of the first
        run(tmp_path / "run", loggers_of("logger=mlflow", tmp_path / "run", "name=mine", f"logger.mlflow.tracking_uri={store}"))
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("longspan")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "mine" and found.info.status == "FINISHED"
    assert found.data.metrics["test/accuracy"] == pytest.approx(0.75)
    assert found.data.params["data/max_length"] == "64" and "logger/x" not in found.data.params
    other = mlflow_logger(tmp_path / "run", tracking_uri=f"file:{tmp_path / 'other'}")
    assert other._run_id is None, "the run of another server is not looked for"


def test_a_missing_mlflow_says_what_to_install(tmp_path, monkeypatch):
    def missing(**_):
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setattr("longspan.records.mlflow_run.MLFlowLogger", missing)
    with pytest.raises(ConfigError, match=r"pip install 'longspan\[mlflow\]'"):
        mlflow_logger(tmp_path)

"""Every experiment takes a step in training, validation and test, and leaves a record."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_files import words_for

from longspan.config.command_line import choices_of
from longspan.config.errors import ConfigError
from longspan.records import Record

CONF = Path(__file__).parents[1] / "conf"
# small enough for two CPU cores; the kinds of data, task and model stay those of the experiment
SMALL = [
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "data.max_length=256",
    "data.batch_size=2",
    "data.max_train_windows=8",
    "data.max_validation_windows=4",
    "data.max_test_windows=4",
    "trainer.fast_dev_run=true",
    "logger=none",
]


# tests/models/test_pretrained.py runs `sparsify`, on a model that it makes
@pytest.mark.parametrize("experiment", [name for name in choices_of(CONF, "experiment") if name != "sparsify"])
def test_every_experiment_runs(experiment, tmp_path, train, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    train(tmp_path, f"experiment={experiment}", *SMALL, *words_for(experiment, tmp_path / "files"))
    record = Record.load(tmp_path)
    assert record.status == "complete"
    assert record.accuracy and all(metric.value is not None for metric in record.accuracy.values())
    assert any(metric.baseline is not None for metric in record.accuracy.values())
    assert record.cost["live_pairs"].value


# what an attention that goes one way only refuses
ONE_WAY = {
    "demo": {"linformer"},
    "hiv1_subtypes": {"dsa", "gated_delta", "gated_linear", "hybrid", "mixed_heads", "retention"},
}


@pytest.mark.parametrize("experiment", ["demo", "hiv1_subtypes"], ids=["causal", "both-ways"])
@pytest.mark.parametrize("attention", choices_of(CONF, "attention"))
def test_every_variant_trains(attention, experiment, tmp_path, train):
    words = [f"attention={attention}", f"experiment={experiment}", *SMALL, "model.width=64", "model.heads=4"]
    if attention in ONE_WAY[experiment]:
        with pytest.raises(ConfigError, match="causal"):
            train(tmp_path, *words)
        assert Record.load(tmp_path).status == "failed"
        return
    train(tmp_path, *words)
    record = Record.load(tmp_path)
    assert record.status == "complete" and record.variant == attention
    density = record.cost["density"].value
    assert density is None or 0 < density <= 1
    assert ("state_bytes" in record.cost) == (experiment == "demo")  # nothing decodes what looks both ways
    assert experiment != "demo" or record.cost["state_bytes"].value > 0
    assert record.cost["live_pairs"].value <= record.cost["visited_pairs"].value

"""Predictions are on the disk batch by batch, and a signal ends them after the batch in hand with every row whole."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from longspan.inference import predict as module
from longspan.inference.predict import predict
from longspan.inference.prediction_files import PredictionFile

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": f"text number {n}"}) + "\n" for n in range(12)))
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_it_within_a_batch(small_checkpoint, tmp_path, texts, monkeypatch, capsys, number):
    output, seen = tmp_path / "out.jsonl", []

    class Signals(PredictionFile):
        def write(self, rows):
            super().write(rows)
            seen.append(len(output.read_text().splitlines()))  # as another process finds it
            if len(seen) == 3:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(module, "PredictionFile", Signals)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        predict(str(small_checkpoint), [f"data.path={texts}", "data.batch_size=2"], CONF, str(output))
    assert caught.value.code == 128 + number and signal.getsignal(number) == before
    assert seen == [1, 3, 5], "a record's row is whole once the next has begun"
    assert len([json.loads(line) for line in output.read_text().splitlines()]) == 5
    assert f"{number.name} received: stopped after 5 whole rows, in {output}" in capsys.readouterr().err


def test_whole_predictions_are_as_before_and_formulas_are_text(small_checkpoint, tmp_path, texts):
    assert predict(str(small_checkpoint), [f"data.path={texts}"], CONF, str(tmp_path / "out.csv")) == 12
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines) == 13 and lines[0].startswith("id,tokens,bits")
    with PredictionFile(tmp_path / "evil.csv") as file:
        file.write([{"id": "=cmd|' /C calc'!A0", "label": "+", "p(=1)": -0.5}])
    assert (tmp_path / "evil.csv").read_text() == "id,label,p(=1)\n'=cmd|' /C calc'!A0,'+,-0.5\n"


def test_an_older_file_stays_until_there_are_rows(small_checkpoint, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(ValueError, match="no such file"):
        predict(str(small_checkpoint), ["data.path=/nope.jsonl"], CONF, str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == "mine"

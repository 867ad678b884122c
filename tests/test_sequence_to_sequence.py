"""Sequence to sequence from the command to the record, and what works with its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import longspan
from longspan.config.errors import ConfigError
from longspan.inference.commands.generate import main as generate_command
from longspan.inference.evaluate import evaluate
from longspan.inference.predict import predict

CONF = Path(__file__).parents[1] / "conf"
SMALL = [
    "experiment=numbers_streaming",
    "attention=local",
    "attention.window=4",
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "data.pairs=200",
    "data.vocabulary=bpe:270",
    "data.max_target_length=24",
    "data.batch_size=4",
    "trainer.max_steps=3",
    "trainer.val_check_interval=3",
    "logger=none",
    "data.max_validation_windows=4",
    "data.max_test_windows=8",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from longspan.config.compose import config_for
    from longspan.training.run import run

    out = tmp_path_factory.mktemp("run")
    run(config_for(SMALL, out, CONF))
    return max((out / "checkpoints").glob("best*.ckpt"), key=lambda file: file.stat().st_mtime)


def test_the_record_has_quality_and_latency(checkpoint):
    record = json.loads((checkpoint.parents[1] / "record.json").read_text())
    assert record["status"] == "complete"
    assert set(record["accuracy"]) == {"bleu", "exact_match", "token_accuracy", "bits_per_token"}
    assert record["accuracy"]["bleu"]["baseline"] is not None
    lagging = record["cost"]["average_lagging"]
    assert lagging["unit"] == "source tokens" and lagging["value"] > 0
    assert 0 < record["cost"]["density"]["value"] < 1
    again = evaluate(str(checkpoint), [], CONF)
    assert {name: a.value for name, a in again.accuracy.items()} == pytest.approx(
        {name: a["value"] for name, a in record["accuracy"].items()}, rel=1e-5
    )


def test_predictions_loading_and_saving(checkpoint, tmp_path, capsys):
    sources = ["12", "7,654", "100,000"]
    model = longspan.load(checkpoint)
    rows = model.predict(sources)
    assert [row["id"] for row in rows] == ["0", "1", "2"] and all(isinstance(row["prediction"], str) for row in rows)
    assert model.generate(sources) == [row["prediction"] for row in rows]
    for short, whole in zip(model.generate(sources, 3), model.generate(sources), strict=True):
        assert whole.startswith(short.rstrip("\ufffd"))
    assert "".join(model.stream(sources[1])) == rows[1]["prediction"]
    assert "".join(model.translate_stream([sources[1]])) == rows[1]["prediction"]
    generate_command([f"checkpoint={checkpoint}", f"prompt={sources[1]}"])
    assert capsys.readouterr().out == rows[1]["prediction"] + "\n", "the target, without its source before it"
    for wrong, message in (
        ({"temperature": 0.7}, "temperature=0.7: an"),
        ({"top_k": 3}, "top_k=3: an"),
        ({"seed": 1}, "seed=1: an"),
    ):
        with pytest.raises(ConfigError, match=message + " encoder-decoder searches for the likeliest target"):
            model.generate(sources, **wrong)
        with pytest.raises(ConfigError, match="draws nothing; leave"):
            next(model.stream(sources[0], **wrong))
    again = longspan.load(model.save_pretrained(tmp_path / "folder"))
    assert again.predict(sources) == rows and "SequenceToSequence" in repr(again)
    (tmp_path / "x.txt").write_text("\n".join(sources))
    assert (
        predict(str(checkpoint), [f"data.path={tmp_path / 'x.txt'}", "data.format=lines"], CONF, str(tmp_path / "y.jsonl")) == 3
    )
    written = [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in written] == [row["prediction"] for row in rows]
    with pytest.raises(TypeError, match="no language model"):
        model.score(sources)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["model=tiny"], ConfigError, "it takes model=encoder_decoder"),
        (["model.cross_attention=wait_k:0"], ValueError, "give a number of tokens, 1 or more"),
        (["task.metrics=[meteor]"], ConfigError, "task.metrics"),
    ],
)
def test_settings_that_do_not_fit(words, error, message, tmp_path, train):
    base = [word for word in SMALL if not words[0].startswith("model=") or not word.startswith("model.")]
    base = ["experiment=dates", *base[1:]] if words[0].startswith("model=") else base
    with pytest.raises(error, match=message):
        train(tmp_path, *base, *words)


@pytest.mark.parametrize("sight", ["wait_k:2", "chunks:4", "Local(8)"])
def test_packed_pairs_are_refused_where_positions_are_followed(sight, tmp_path):
    from longspan.config.compose import config_for
    from longspan.training.assemble import assemble

    words = [*SMALL, f"model.cross_attention={sight}", "data.pack=true"]
    with pytest.raises(
        ConfigError, match=r"data\.pack=True: packed pairs shift positions, and model\.cross_attention=.*; give"
    ):
        assemble(config_for(words, tmp_path, CONF))
    assemble(config_for([*SMALL, "model.cross_attention=full", "data.pack=true"], tmp_path, CONF))

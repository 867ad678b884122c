"""The screen before training: what is counted in it is right, it fits a terminal, and the log file holds it."""

from __future__ import annotations

import io
import json
import logging
import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from longspan.config.compose import config_for
from longspan.patterns import Full
from longspan.training.assemble import assemble
from longspan.training.build import build_trainer
from longspan.training.overview import attention_cost, overview, show_overview, variants_without_a_layer
from longspan.training.step_size import step_size
from longspan_kernels.block_sparse import counted_pairs, full_pairs

CONF = Path(__file__).parents[2] / "conf"
SMALL = [
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "data=hiv1",
    "task=sequence_classification",
    "data.max_length=256",
]

PAIRS = ["data.max_target_length=64", "model=encoder_decoder", "task=sequence_to_sequence"]
EACH = ("train", "validation", "test")


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
    """A model of local attention, its data and trainer, by window."""
    folder = tmp_path_factory.mktemp("runs")

    def make(window: int):
        config = config_for([*SMALL, "attention=local", f"attention.window={window}"], folder / "run", CONF)
        datamodule, task, _ = assemble(config)
        return config, step_size(config), datamodule, task, build_trainer(config, [], [])

    return make


def test_the_pairs_and_the_cost_are_those_of_the_pattern(assembled):
    *_, task, _ = assembled(65)
    cost = attention_cost(task, 256)
    live = sum(min(256, i + 33) - max(0, i - 32) for i in range(256))
    assert cost.density == pytest.approx(live / 256**2) and cost.full_density == 1.0
    assert cost.flops == task.cost(256).total_flops < cost.full_flops and not cost.keeps_all
    # 4 FLOPs a pair and unit of width, in 2 layers of 2 heads of 16
    assert cost.full_flops - task.cost(256).other_flops >= 4 * 16 * 2 * 2 * 256**2


@pytest.mark.parametrize("causal", [False, True])
def test_full_attention_is_counted_without_its_tiles(causal):
    for length in (1, 64, 65, 100, 1000):
        assert full_pairs(length, 3, causal) == counted_pairs(Full().key, length, length, 3, causal)
    assert full_pairs(2**20, 1, causal) > 2**39  # more tiles than a layout lists


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_says_all_of_it_and_fits(assembled, width, tmp_path):
    config, *rest = assembled(511)
    log_file = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(log_file)
    seen = Console(file=io.StringIO(), width=width)
    try:
        show_overview(overview(config, *rest), "a run", seen)
    finally:
        logging.getLogger().removeHandler(log_file)
    text = seen.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for kept in (text, (tmp_path / "train.log").read_text()):
        words = " ".join(kept.replace("│", " ").split())
        for part in (
            "bundled hiv1",
            "cut at 256",
            "classes:",
            "2 layers of width 32",
            "window=511",
            "keeps 100 %",
            "keeps every pair at this length",
            "checkpoints/",
            "200 steps",
            "CPU",
        ):
            assert part in words


@pytest.mark.parametrize(
    ("words", "missing", "listed"),
    [
        (["attention=hybrid"], ["full"], 4),
        (["attention=hybrid", "model.layers=4"], [], 4),
        (
            ["attention=hybrid", "attention.layers=[local,{name:local,window:9},full,local]", "model.layers=1"],
            ["local", "full"],
            4,
        ),
        (["attention=interleaved", "model.attention_layers=[local,local,full,local]"], ["full"], 4),
        (["attention=interleaved"], [], 2),
        (["attention=local"], [], 1),
    ],
)
def test_an_attention_that_no_layer_has_is_named(words, missing, listed, tmp_path):
    config = config_for(["model.layers=2", *words], tmp_path / "run", CONF)
    assert variants_without_a_layer(config) == (missing, listed)


def test_the_screen_says_what_no_layer_has(tmp_path):
    config = config_for(["model=tiny", "model.layers=2", "data.max_length=64", "attention=hybrid"], tmp_path / "run", CONF)
    datamodule, task, _ = assemble(config)
    seen = Console(file=io.StringIO(), width=120)
    seen.print(overview(config, step_size(config), datamodule, task, build_trainer(config, [], [])))
    assert "No layer has full: 4 layers are listed and the model has 2. Give a shorter list, or model.layers=4." in " ".join(
        seen.file.getvalue().split()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["data=dates", "data.pairs=200", "data.max_length=64", "data.pack=true", *PAIRS],
            r"bytes, sequences of up to 64 tokens train 180 pairs in \d+ rows, .*test 10 pairs",
        ),
        (
            [
                "data=shapes",
                "data.side=64",
                "data.radius=16",
                "task=sequence_classification",
                *(f"data.{s}_examples=8" for s in EACH),
            ],
            r"patches, sequences of up to 64 tokens train 8 sequences",
        ),
    ],
)
def test_the_screen_counts_what_the_data_are(words, said, tmp_path):
    small = ["model.layers=1", "model.width=32", "model.heads=2", "attention=full"]
    config = config_for([*words, *small], tmp_path / "run", CONF)
    datamodule, task, _ = assemble(config)
    seen = Console(file=io.StringIO(), width=120)
    seen.print(overview(config, step_size(config), datamodule, task, build_trainer(config, [], [])))
    assert re.search(said, " ".join(seen.file.getvalue().split()))


@pytest.mark.parametrize(
    ("longest", "words", "hint"),
    [
        (23, [], "The longest sequence has 23 tokens and all are padded to 256. data.max_length=32 cuts none"),
        (128, [], "The longest sequence has 128 tokens and all are padded to 256. data.max_length=128 cuts none"),
        (129, [], None),
        (23, ["data.pad_to_multiple=16"], None),
    ],
)
def test_the_screen_says_that_most_is_padding(longest, words, hint, tmp_path):
    rows = [f"{'ab'[n % 2] * (longest if n == 5 else 9)},{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    data = ["data=classification", f"data.path={tmp_path}/rows.csv", "task=sequence_classification", "data.max_length=256"]
    config = config_for(["model=tiny", "attention=local", *data, *words], tmp_path / "run", CONF)
    datamodule, task, _ = assemble(config)
    seen = Console(file=io.StringIO(), width=120)
    seen.print(overview(config, step_size(config), datamodule, task, build_trainer(config, [], [])))
    text = " ".join(seen.file.getvalue().split())
    assert hint in text if hint else "padded to" not in text
    assert re.search(r"CPU, (1 thread|\d+ threads), float32", text)


@pytest.mark.parametrize(
    ("letters", "words", "said"),
    [
        ("ACGTN", ["data.vocabulary=proteins"], True),
        ("acgun", ["data.vocabulary=proteins"], True),
        ("ACGTNL", ["data.vocabulary=proteins"], False),
        ("ACGTN", ["data.vocabulary=nucleotides"], False),
        ("ACGTN", ["data.vocabulary=bytes"], False),
    ],
)
@pytest.mark.parametrize("kind", ["text", "streamed", "classification", "pairs"])
def test_the_screen_says_that_proteins_are_bases(letters, words, said, kind, tmp_path):
    draw = random.Random(0)
    texts = ["".join(draw.choices(letters, k=50)) for _ in range(60)]
    rows = [{"text": text, "label": n % 2, "source": f"number {n}", "target": text} for n, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {
        "classification": ["task=sequence_classification"],
        "pairs": ["model=encoder_decoder", "task=sequence_to_sequence"],
        "text": ["data.text_column=text"],
        "streamed": ["data.text_column=text", "data.validation_fraction=0.2", "data.test_fraction=0.2"],
    }[kind]
    if kind == "pairs":
        words = [word.replace("vocabulary", "target_vocabulary") for word in words]
    small = ["model.layers=1", "model.width=32", "model.heads=2", "attention=full", "data.max_length=64"]
    config = config_for([f"data={kind}", f"data.path={tmp_path}/rows.jsonl", *own, *words, *small], tmp_path / "run", CONF)
    datamodule, task, _ = assemble(config)
    seen = Console(file=io.StringIO(), width=120)
    seen.print(overview(config, step_size(config), datamodule, task, build_trainer(config, [], [])))
    key = words[0].partition("=")[0]
    text = " ".join(seen.file.getvalue().split())
    assert (f"{key}=proteins, but" in text and f"{key}=nucleotides" in text) == said

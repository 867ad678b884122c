"""Generation: choices of the next token, seeds, batches of unequal prompts, text as it comes, the command line."""

import copy
from pathlib import Path

import pytest
import torch
from warm_process import run

import longspan.attention as variants
from longspan.config.errors import CallError, ConfigError
from longspan.config.overrides import number
from longspan.data.vocabularies import BYTES
from longspan.inference.commands.generate import main
from longspan.inference.generate import Sampling, StreamedText, generate
from longspan.models import Decoder, Encoder, HeadedModel, LanguageModellingHead

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = Decoder(
        vocab_size=30, max_length=64, attention=lambda **place: variants.local(**place, window=6), layers=2, width=32, heads=2
    )
    return HeadedModel(backbone, LanguageModellingHead(backbone, tied=False)).eval()


def texts(model, prompts, count, *arguments, **more):
    rows = [[] for _ in prompts]
    for step in generate(model, prompts, count, *arguments, **more):
        for row, token in zip(rows, step, strict=True):
            row += [] if token is None else [token]
    return rows


@torch.no_grad()
def test_greedy_is_the_most_likely_token_of_full_passes(model):
    found = texts(model, PROMPTS, 20)
    for prompt, got in zip(PROMPTS, found, strict=True):
        so_far = list(prompt)
        for token in got:
            assert token == int(model(torch.tensor([so_far]))[0, -1].argmax())
            so_far.append(token)


def test_a_sequence_draws_for_itself(model):
    sampling = Sampling(temperature=1.5, seed=3)
    together = texts(model, PROMPTS, 20, sampling)
    assert together == texts(model, PROMPTS, 20, sampling)
    assert texts(model, PROMPTS[:1], 20, sampling) == together[:1]
    assert texts(model, PROMPTS, 20, Sampling(temperature=1.5, seed=4)) != together
    assert texts(model, [PROMPTS[1]] * 2, 20, sampling)[0] != texts(model, [PROMPTS[1]] * 2, 20, sampling)[1]


def test_a_sequence_ends_after_a_stop_token_and_the_others_go_on(model):
    whole = texts(model, PROMPTS, 20)
    stop = whole[0][2]
    found = texts(model, PROMPTS, 20, stop_tokens=[stop])
    for row, full in zip(found, whole, strict=True):
        assert row == (full[: full.index(stop) + 1] if stop in full else full)
    for row in texts(model, PROMPTS, 20, Sampling(temperature=3.0), forbidden=range(20)):
        assert min(row) >= 20


def test_distributions():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    plain = logits.softmax(-1)
    torch.testing.assert_close(Sampling().distribution(logits), plain)
    torch.testing.assert_close(Sampling(temperature=0.5).distribution(logits), (2 * logits).softmax(-1))
    assert Sampling(temperature=0.0).distribution(logits).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.8)):  # 0.644 + 0.237
        kept = sampling.distribution(logits)
        torch.testing.assert_close(kept, plain * torch.tensor([1.0, 1.0, 0.0, 0.0]) / plain[0, :2].sum())
    for sampling in (Sampling(top_p=1e-9), Sampling(temperature=1e-45), Sampling(temperature=1e-300, top_k=3)):
        assert sampling.distribution(logits).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_draws_follow_the_distribution(model):
    prompts = [[5, 6]] * 3000
    counts = torch.bincount(torch.tensor(texts(model, prompts, 1, Sampling()))[:, 0], minlength=30) / 3000
    with torch.no_grad():
        chances = model(torch.tensor([[5, 6]]))[0, -1].softmax(-1)
    assert (counts - chances).abs().max() < 5 * (0.25 / 3000) ** 0.5


def test_characters_of_several_bytes_come_whole():
    stream = StreamedText(BYTES)
    pieces = [stream.add(byte) for byte in "é€x".encode()]
    assert pieces == ["", "é", "", "", "€", "x"] and stream.add(None) == ""
    stream.add(0xE2)
    assert stream.end() == "\ufffd"


WRONG = [
    (lambda m: Sampling(temperature=-1.0), "temperature=-1.0: give a number"),
    (lambda m: Sampling(top_k=0), "top_k=0: give a number of tokens, 1 or more"),
    (lambda m: Sampling(top_p=1.5), "top_p=1.5: give a probability"),
    (lambda m: Sampling(seed=-1), "seed=-1: give a whole number"),
    (lambda m: number("top_k", "many"), "top_k=many: give a whole number"),
    (lambda m: texts(m, [], 3), "prompts: there is none"),
    (lambda m: texts(m, [[1], []], 3), r"prompts\[1\] is empty"),
    (lambda m: texts(m, [[1]], 0), "max_new_tokens=0"),
    (lambda m: texts(m, [[1] * 60], 5), "max_new_tokens=5 after a prompt of 60 tokens is more than the 64 .*; give at most 4"),
    (lambda m: texts(m, [[1], [1] * 64], 1), r"prompts\[1\] has 64 tokens and the model was built for 64.*; give at most 63"),
]


@pytest.mark.parametrize(("act", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_cannot_work_says_so(model, act, message):
    with pytest.raises(ConfigError, match=message):
        act(model)


def test_a_model_that_diverged_says_so(model):
    broken = copy.deepcopy(model)
    next(broken.head.parameters()).data[3] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(CallError, match="logits are NaN: its weights may have diverged; give an earlier checkpoint"):
            texts(broken, [[1, 2]], 3, Sampling(temperature))


def test_a_model_that_looks_both_ways_generates_nothing():
    backbone = Encoder(vocab_size=30, max_length=64, attention=variants.full, layers=1, width=32, heads=2)
    with pytest.raises(ConfigError, match="looks both ways"):
        texts(HeadedModel(backbone, LanguageModellingHead(backbone)), [[1]], 3)


def typed(*words):
    """The exit code of generate.py with these words, in this process."""
    try:
        return main(words) or 0
    except SystemExit as stop:
        return stop.code or 0


def test_from_a_checkpoint_on_the_command_line(tmp_path, train, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    small = ["model.layers=1", "model.width=32", "model.heads=2", "data=text", f"data.path={tmp_path}/text.txt", "logger=none"]
    small += ["data.max_length=64", "data.batch_size=2", "trainer.max_steps=3", "attention=local", "attention.window=16"]
    train(tmp_path / "run", *small)
    command = [f"checkpoint={tmp_path}/run", "prompt=The quick", "max_new_tokens=12"]
    done = run(ROOT / "scripts" / "generate.py", *command, "temperature=0", cwd=tmp_path, check=True)
    from longspan import load

    assert done.stdout == "The quick" + load(tmp_path / "run").generate(["The quick"], 12, temperature=0.0)[0] + "\n"
    capsys.readouterr()
    assert typed(*command[:-1], "temperature=0") == 0  # 200 tokens would be more than the model takes
    usual = capsys.readouterr().out
    assert usual.startswith(done.stdout[:-1]) and len(usual.encode()) > 40
    assert typed(*command[:-2], "prompt=") == 2
    assert "prompt= is empty; give at least one character" in capsys.readouterr().err
    assert typed(*command, "device=gpu") == 2
    assert "device=gpu is no device of this machine; give cpu" in capsys.readouterr().err
    assert typed(*command, "top_p=2") == 2
    wrong = capsys.readouterr()
    assert not wrong.out and "top_p=2.0: give a probability" in wrong.err
    assert typed(*command, "top_k=many") == 2
    assert "top_k=many: give a whole number" in capsys.readouterr().err

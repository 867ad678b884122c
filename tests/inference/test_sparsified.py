"""A sparsified model's folder stands alone; its checkpoint finds the model that it began from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import longspan
from longspan.config.compose import config_for
from longspan.config.errors import CheckpointError, ConfigError
from longspan.data.vocabularies import BYTES
from longspan.inference.evaluate import evaluate
from longspan.inference.tokenizer_files import write_tokenizer
from longspan.training.run import run

transformers = pytest.importorskip("transformers")
CONF = Path(__file__).parents[2] / "conf"
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "max_position_embeddings": 64}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=260, **SIZES, intermediate_size=48, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "qwen3": lambda: transformers.Qwen3Config(
        vocab_size=260, **SIZES, intermediate_size=48, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "bert": lambda: transformers.BertConfig(vocab_size=260, **SIZES, intermediate_size=48),
}
CASES = {
    "local": ("llama", "language_modelling", ["attention=local", "attention.window=16"]),
    "learned": ("gpt2", "language_modelling", ["attention=learned", "attention.block_size=16", "attention.density=0.5"]),
    "nsa": ("qwen3", "language_modelling", ["attention=nsa", "attention.block_size=16"]),
    "encoder": ("bert", "masked_modelling", ["attention=learned", "attention.block_size=16", "attention.density=0.5"]),
}
TEXTS = ["We the people of the United States", "in order to form"]


@pytest.fixture(scope="module", params=CASES)
def trained(request, tmp_path_factory):
    """(case, home): a run in home/run of the model in home/began, named by a relative path and trained in home."""
    kind, task, attention = CASES[request.param]
    home = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    auto.from_config(CONFIGS[kind]()).save_pretrained(home / "began")
    write_tokenizer(BYTES, home / "began", max_length=64, begins=False)
    (home / "text.txt").write_text("We the people of the United States, in order to form a more perfect union. " * 60)
    words = [
        "experiment=sparsify",
        "data=text",
        f"data.path={home / 'text.txt'}",
        "model.path=began",
        "data.vocabulary=began",
        f"task={task}",
        *attention,
    ]
    short = ["trainer.max_steps=2", "trainer.val_check_interval=2", "data.max_validation_windows=2", "data.max_test_windows=2"]
    with pytest.MonkeyPatch.context() as here:
        here.chdir(home)
        run(
            config_for(
                [
                    *words,
                    *short,
                    "data.max_length=64",
                    "data.batch_size=2",
                    "optimizer.lr=0.01",
                    "logger=none",
                    "callbacks.progress=null",
                ],
                home / "run",
                CONF,
            )
        )
    return request.param, home


@pytest.fixture
def moved(trained, tmp_path, monkeypatch):
    """(case, a copy of what was saved, rows and text of the run's model), seen from elsewhere, what it began from gone."""
    case, home = trained
    monkeypatch.chdir(tmp_path)
    model = longspan.load(home / "run")
    with torch.no_grad():
        for module in model.model.backbone.attention_modules():
            for parameter in module.parameters():
                parameter.add_(torch.linspace(0.1, 0.3, parameter.numel()).view_as(parameter))  # no initial value is right
    model.save_pretrained(home / "saved")
    shutil.move(home / "saved", tmp_path / "kept")
    (home / "began").rename(home / "gone")
    yield case, tmp_path / "kept", model
    (home / "gone").rename(home / "began")


def test_a_folder_stands_alone(moved):
    case, folder, right = moved
    again = longspan.load("kept")
    want, have = right.task.state_dict(), again.task.state_dict()
    assert want.keys() == have.keys() and all(torch.equal(want[name], have[name]) for name in want)
    assert any(".attentions." in name for name in want) == (case != "local")
    assert again.score(TEXTS) == right.score(TEXTS)
    if case == "encoder":
        return
    text = again.generate(TEXTS, 12, temperature=0)
    assert text == right.generate(TEXTS, 12, temperature=0)
    second = again.save_pretrained("second")  # of a model that came from a folder itself
    assert longspan.load(second).score(TEXTS) == right.score(TEXTS)
    assert transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[1]).input_ids[-16:] == list(
        right.vocabulary.encode(TEXTS[1])
    )


def test_transformers_reads_the_folder(moved):
    from longspan.integrations.huggingface import register

    case, folder, right = moved
    register()
    auto = transformers.AutoModelForMaskedLM if case == "encoder" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder).eval()
    tokens = torch.tensor([list(right.vocabulary.encode(TEXTS[0]))])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, right.model(tokens))


@pytest.mark.parametrize("trained", ["local", "learned", "nsa"], indirect=True)
def test_decoding_is_one_pass_over_all(trained):
    _, home = trained
    model = longspan.load(home / "run").model
    torch.manual_seed(1)
    tokens, lengths = torch.randint(4, 260, (2, 40)), torch.tensor([20, 11])
    with torch.no_grad():
        cache = model.backbone.new_cache(2)
        first = model.backbone(tokens[:, :20], lengths=lengths, cache=cache)
        steps = [first[torch.arange(2), lengths - 1]]
        for step in range(5):
            following = torch.stack([row[length + step] for row, length in zip(tokens, lengths, strict=True)])[:, None]
            steps.append(model.backbone(following, cache=cache)[:, 0])
        for row, length in enumerate(lengths.tolist()):
            whole = model.backbone(tokens[row : row + 1, : length + 5])[0, length - 1 :]
            torch.testing.assert_close(torch.stack(steps)[:, row], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", ["learned"], indirect=True)
def test_a_checkpoint_finds_its_model_from_any_folder_and_says_where_it_was(trained, tmp_path, monkeypatch):
    _, home = trained
    monkeypatch.chdir(tmp_path)
    (checkpoint,) = (home / "run" / "checkpoints").glob("best*.ckpt")
    figures = json.loads((home / "run" / "record.json").read_text())["accuracy"]["perplexity"]
    assert evaluate(str(checkpoint), [], CONF).accuracy["perplexity"].value == pytest.approx(figures["value"], rel=1e-5)
    (home / "began").rename(home / "elsewhere")
    try:
        for rebuilt in (lambda: longspan.load(home / "run"), lambda: evaluate(str(checkpoint), [], CONF)):
            with pytest.raises(
                ConfigError, match=rf"model\.path={str(home / 'began')!r}: there is no such folder; put the model"
            ):
                rebuilt()
        again = evaluate(str(checkpoint), [f"model.path={home / 'elsewhere'}"], CONF)
        assert again.accuracy["perplexity"].value == pytest.approx(figures["value"], rel=1e-5)
    finally:
        (home / "elsewhere").rename(home / "began")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"num_hidden_layers": 10_000_000, "n_layer": 10_000_000},
            "10000000 layers, and its weights have 2|no network that transformers can build",
        ),
        ({"max_position_embeddings": 2**22, "n_positions": 2**22, "intermediate_size": 2**18}, "describes a network of"),
        ({"model_type": "nonesuch"}, "'nonesuch', which transformers does not have"),
        ({"hidden_size": "wide", "n_embd": "wide"}, "no network that transformers can build"),
    ],
)
def test_a_strangers_folder_describes_no_more_than_it_holds(moved, tmp_path, changes, says):
    _, folder, _ = moved
    content = json.loads((folder / "config.json").read_text())
    content["longspan_config"]["model"]["network"].update(changes)
    folder = shutil.copytree(folder, tmp_path / "changed")
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=says):
        longspan.load(folder)

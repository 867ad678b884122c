"""Trained models as transformers' classes: the same logits, pipelines, generation, and its own way of saving."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import longspan
from longspan.config.compose import config_for
from longspan.config.errors import CallError
from longspan.integrations.huggingface import register
from longspan.training.run import run

transformers = pytest.importorskip("transformers")
CONF = Path(__file__).parents[2] / "conf"
SMALL = [
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "trainer.max_steps=3",
    "logger=none",
    "callbacks.progress=null",
    "data.batch_size=4",
    "data.max_length=64",
    "attention=local",
    "attention.window=16",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a classifier of bytes and a language model of bases."""
    register()
    folder, draw = tmp_path_factory.mktemp("models"), random.Random(0)
    rows = [f"{''.join(draw.choices('abc' if n % 2 else 'XYZ', k=30))},{('calm', 'loud')[n % 2]}" for n in range(40)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "bases.fa").write_text(">one\n" + "".join(draw.choices("ACGT", k=4000)) + "\n")
    tasks = {
        "classifier": [
            "data=classification",
            f"data.path={folder / 'rows.csv'}",
            "task=sequence_classification",
            "task.class_weights=balanced",
        ],
        "bases": [
            "data=genome_lm",
            f"data.path={folder / 'bases.fa'}",
            "data.max_validation_windows=2",
            "data.max_test_windows=2",
        ],
    }
    for name, words in tasks.items():
        run(config_for([*SMALL, *words], folder / name, CONF))
        longspan.load(folder / name).save_pretrained(folder / f"{name}-saved")
    return {name: (longspan.load(folder / name), folder / f"{name}-saved") for name in tasks}


def test_a_classifier_is_an_auto_model_and_a_pipeline(saved):
    ours, folder = saved["classifier"]
    texts = ["abcabc", "XYZZ", "a longer text, é"]
    pipe = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    for text, rows in zip(texts, pipe(texts, batch_size=3), strict=True):
        expected = ours.predict([text])[0]
        for row in rows:
            assert row["score"] == pytest.approx(expected[f"p({row['label']})"], abs=1e-5)


def test_a_folder_is_an_auto_model_of_its_last_vectors(saved):
    for name in saved:
        ours, folder = saved[name]
        model, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
        tokens = torch.randint(0, 4, (2, 20))
        mask = torch.ones_like(tokens)
        mask[1, :7] = 0
        with torch.no_grad():
            both, one = (model(tokens, attention_mask=m).last_hidden_state for m in (mask, None))
            torch.testing.assert_close(one, ours.model.backbone(tokens))
            torch.testing.assert_close(both[1, 7:], ours.model.backbone(tokens[1:, 7:])[0], atol=1e-5, rtol=1e-5)
        assert not told["unexpected_keys"] and not told["missing_keys"]


def test_numbers_are_in_the_units_of_the_targets(tmp_path):
    rows = "".join(f"{'ab' * (n % 9 + 1)} {n},{100 + n},{-n}\n" for n in range(40))
    (tmp_path / "rows.csv").write_text(f"text,high,low\n{rows}")
    words = [f"data.path={tmp_path / 'rows.csv'}", "data.label_columns=[high,low]", "task=sequence_regression"]
    run(config_for([*SMALL, "data=regression", *words], tmp_path / "run", CONF))
    ours = longspan.load(tmp_path / "run")
    folder = ours.save_pretrained(tmp_path / "saved")
    expected = ours.predict(["abab 3"])[0]
    (rows,) = transformers.pipeline("text-classification", model=str(folder), top_k=None)(["abab 3"])
    assert {row["label"]: pytest.approx(row["score"], abs=1e-3) for row in rows} == {n: expected[n] for n in ("high", "low")}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    batch = {"tokens": torch.randint(0, 99, (3, 20)), "labels": torch.randn(3, 2) * 10}
    loss = model(batch["tokens"], labels=batch["labels"]).loss
    torch.testing.assert_close(loss, ours.task.step(batch, 0, "train").loss, atol=1e-5, rtol=1e-5)


def test_an_encoder_decoder_finds_the_same_targets(tmp_path):
    words = ["data=dates", "data.pairs=60", "data.max_length=32", "data.max_target_length=16", "data.batch_size=4"]
    more = ["model=encoder_decoder", "task=sequence_to_sequence", "trainer.val_check_interval=3", "data.max_test_windows=2"]
    run(config_for([*SMALL, *words, *more, "data.max_validation_windows=2"], tmp_path / "run", CONF))
    ours = longspan.load(tmp_path / "run")
    folder = ours.save_pretrained(tmp_path / "saved")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    texts = ["March 3, 2004", "Sunday, 16 Jun 1996"]
    expected = [row["prediction"] for row in ours.predict(texts)]
    for side in ("left", "right"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        assert tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True) == expected
    labels = torch.randint(0, 99, (2, 7))
    loss = model(batch["input_ids"], batch["attention_mask"], labels=labels).loss
    given = {"tokens": batch["input_ids"], "lengths": batch["attention_mask"].sum(1), "labels": labels}
    given["target"] = torch.cat([torch.full((2, 1), ours.task.bos_id), labels[:, :-1]], 1)
    torch.testing.assert_close(loss, ours.task.step(given, 0, "train").loss, atol=1e-5, rtol=1e-5)
    for call, told in (
        (lambda: model(batch["input_ids"]), "give decoder_input_ids or labels"),
        (lambda: model.generate(batch["input_ids"], do_sample=True), "leave out do_sample"),
        (lambda: transformers.AutoModel.from_pretrained(folder)(batch["input_ids"]), "AutoModelForSeq2SeqLM"),
    ):
        with pytest.raises(CallError, match=told):
            call()


def test_a_folder_loads_without_a_report_of_strange_weights(saved):
    _, folder = saved["classifier"]  # its file holds the weights of classes, which the task takes for its loss
    _, told = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]


def test_a_folder_of_another_task_and_what_cannot_be_served_are_refused(saved):
    _, folder = saved["bases"]
    with pytest.raises(CallError, match="describes a LongspanForCausalLM; load it with AutoModelForCausalLM"):
        transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(CallError, match="in code of its own"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="longspan:Local(8)")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[4, 1, 2, 1, 2]])
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(ids, max_new_tokens=2, prompt_lookup_num_tokens=2, do_sample=False)
    with pytest.raises(CallError, match="pad on the left"):
        model.generate(ids.repeat(2, 1), attention_mask=torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]), max_new_tokens=2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_that_is_padded_on_either_side_has_the_logits_of_its_sequences(saved, side):
    ours, folder = saved["bases"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    texts = ["ACGTACGTTTGA", "acgu", "NNACG"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    for index, text in enumerate(texts):
        ids = [ours.vocabulary.bos_id, *ours.vocabulary.encode(text)]
        real = batch["attention_mask"][index].bool()
        assert batch["input_ids"][index][real].tolist() == ids
        with torch.no_grad():
            alone = ours.model(torch.tensor([ids]))[0]
            together = model(**batch).logits[index][real]
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_language_model_generates_and_is_saved_by_transformers(saved, tmp_path):
    ours, folder = saved["bases"]
    pipe = transformers.pipeline("text-generation", model=str(folder))
    text = pipe("ACGTAC", max_new_tokens=5, do_sample=False, return_full_text=False)[0]["generated_text"]
    ids = [ours.vocabulary.bos_id, *ours.vocabulary.encode("ACGTAC")]
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(ours.model(torch.tensor([ids]))[0, -1].argmax()))
    assert text == ours.vocabulary.decode(ids[7:]) == ours.generate(["ACGTAC"], 5, temperature=0.0)[0]
    pipe.model.save_pretrained(tmp_path / "again")
    again = longspan.load(tmp_path / "again")
    for name, weight in ours.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_losses_are_those_of_the_task(saved):
    ours, folder = saved["bases"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.randint(0, 4, (2, 20))
    loss = model(tokens, labels=tokens).loss
    torch.testing.assert_close(loss, ours.task.step({"tokens": tokens}, 0, "train").loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_mask_with_holes_is_refused(saved):
    model = transformers.AutoModelForCausalLM.from_pretrained(saved["bases"][1])
    with pytest.raises(CallError, match="holes"):
        model(torch.zeros(1, 4, dtype=torch.long), attention_mask=torch.tensor([[1, 0, 1, 1]]))


@pytest.mark.parametrize(
    "attention",
    [
        ["attention=retention"],
        ["attention=reformer", "attention.chunk=16"],
        ["attention=learned", "attention.block_size=16", "attention.density=0.5"],
    ],
    ids=lambda words: words[0],
)
def test_what_a_file_does_not_hold_is_there_again(attention, tmp_path):
    """Buffers that are computed, and what attention makes of its weights as they are loaded: transformers does neither."""
    register()
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    words = [*(word for word in SMALL if not word.startswith("attention")), *attention, "trainer.max_steps=2"]
    run(config_for([*words, "data=text", f"data.path={tmp_path / 'text.txt'}"], tmp_path / "run", CONF))
    ours = longspan.load(tmp_path / "run")
    for module in ours.model.backbone.attention_modules():
        for parameter in module.parameters():
            parameter.data.add_(torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter))
    model = transformers.AutoModelForCausalLM.from_pretrained(ours.save_pretrained(tmp_path / "saved")).eval()
    tokens = torch.randint(0, 256, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, ours.model(tokens))

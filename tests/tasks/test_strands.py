"""Averaging over strands: outside training, predictions are the mean over a sequence and its reverse complement."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from longspan.config.errors import ConfigError
from longspan.data import NUCLEOTIDES
from longspan.models import transformer
from longspan.tasks import SequenceClassification, SequenceRegression, TokenLabelling, build_task
from longspan.tasks.strands import label_swap

LENGTH = 24
NAMES = ["no gene", "gene on +", "gene on -"]
PAIRED = torch.from_numpy(NUCLEOTIDES.complement)


class Bases:
    """Sequences of bases, the second one short."""

    max_length, vocab_size, vocabulary = LENGTH, NUCLEOTIDES.size, NUCLEOTIDES
    num_classes, class_names, multi_label = 3, NAMES, False
    target_mean, target_std, columns = (2.0,), (3.0,), ("height",)

    def __init__(self, labels=None, multi_label=False):
        self.multi_label = multi_label
        tokens = torch.randint(4, (3, LENGTH), generator=torch.Generator().manual_seed(0))
        lengths = torch.tensor([LENGTH, 15, 7])
        tokens[torch.arange(LENGTH) >= lengths[:, None]] = NUCLEOTIDES.pad_id
        self.batch = {"tokens": tokens, "lengths": lengths}
        if labels is not None:
            self.batch["labels"] = labels


def made(kind, data, sdpa, **settings):
    torch.manual_seed(0)
    model = partial(transformer, layers=2, width=32, heads=2, **settings.pop("sizes", {}))
    task = build_task(partial(kind, **settings), model=model, attention=sdpa, data=data)
    for weight in task.model.head.parameters():
        torch.nn.init.normal_(weight)
    return task.eval()


def of_each_row(task, batch):
    """Predictions of each sequence by itself, without padding: of itself, and of its reverse complement."""
    task.average_strands = False
    for tokens, length in zip(batch["tokens"], batch["lengths"].tolist(), strict=True):
        row = tokens[None, :length]
        yield tuple(task.predict_step({"tokens": one}, 0) for one in (row, PAIRED[row].flip(1)))


@pytest.mark.parametrize("multi_label", [False, True])
def test_classes_take_the_mean_of_both_probabilities(sdpa, multi_label):
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0]]) if multi_label else torch.tensor([0, 1, 2])
    data = Bases(labels, multi_label)
    task = made(SequenceClassification, data, sdpa, average_strands=True)
    with torch.no_grad():
        got = task.predict_step(data.batch, 0)["probabilities"]
        loss = task.step(data.batch, 0, "val").loss
        rows = list(of_each_row(task, data.batch))
    expected = torch.cat([(one["probabilities"] + other["probabilities"]) / 2 for one, other in rows])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert max(float((a["probabilities"] - b["probabilities"]).abs().max()) for a, b in rows) > 0.05, "strands differ"
    wanted = expected[range(3), labels] if not multi_label else torch.where(labels > 0, expected, 1 - expected)
    torch.testing.assert_close(loss, -wanted.log().mean(), rtol=1e-4, atol=1e-5)


def test_numbers_take_the_mean(sdpa):
    data = Bases()
    task = made(SequenceRegression, data, sdpa, average_strands=True)
    with torch.no_grad():
        got = task.predict_step(data.batch, 0)["values"]
        expected = torch.cat([(one["values"] + other["values"]) / 2 for one, other in of_each_row(task, data.batch)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_labels_of_bases_are_read_backwards_and_strand_classes_swapped(sdpa):
    data = Bases(torch.randint(3, (3, LENGTH), generator=torch.Generator().manual_seed(1)))
    task = made(TokenLabelling, data, sdpa, average_strands=True)
    head = task.model.head

    def probabilities(tokens):
        return head(task.model.backbone(tokens)).softmax(-1)  # (1, T, K)

    with torch.no_grad():
        got, loss = task.predict_step(data.batch, 0), task.step(data.batch, 0, "test").loss
        losses = []
        for row, length in enumerate(data.batch["lengths"].tolist()):
            tokens = data.batch["tokens"][row : row + 1, :length]
            mean = (probabilities(tokens) + probabilities(PAIRED[tokens].flip(1)).flip(1)[..., [0, 2, 1]]) / 2
            torch.testing.assert_close(got["probabilities"][row, :length], mean.max(-1).values[0], rtol=1e-4, atol=1e-5)
            assert torch.equal(got["labels"][row, :length], mean.argmax(-1)[0])
            losses.append(-mean[0, range(length), data.batch["labels"][row, :length]].log())
    torch.testing.assert_close(loss, torch.cat(losses).mean(), rtol=1e-4, atol=1e-5)


def test_training_reads_one_strand(sdpa):
    data = Bases(torch.tensor([0, 1, 2]))
    averaging, plain = (made(SequenceClassification, data, sdpa, average_strands=yes).train() for yes in (True, False))
    assert torch.equal(averaging.step(data.batch, 0, "train").loss, plain.step(data.batch, 0, "train").loss)


@pytest.mark.parametrize("kind", [SequenceClassification, TokenLabelling])
def test_a_model_of_both_strands_has_nothing_to_gain(kind, sdpa):
    labels = torch.tensor([0, 1, 2]) if kind is SequenceClassification else torch.zeros(3, LENGTH, dtype=torch.int64)
    data = Bases(labels)
    task = made(kind, data, sdpa, sizes={"reverse_complement": "shared"})
    with torch.no_grad():
        alone = task.predict_step(data.batch, 0)["probabilities"]
        task.average_strands = True
        both = task.predict_step(data.batch, 0)["probabilities"]
    real = (
        slice(None)
        if alone.dim() == 2 and kind is SequenceClassification
        else torch.arange(LENGTH) < data.batch["lengths"][:, None]
    )
    torch.testing.assert_close(both[real], alone[real], rtol=1e-4, atol=1e-5)


def test_names_say_which_labels_change_places():
    assert label_swap(NAMES) == [0, 2, 1]
    assert label_swap(["no feature", "CDS on +", "tRNA on -", "CDS on -", "tRNA on +"]) == [0, 3, 4, 1, 2]
    assert label_swap(["no gene", "gene"]) is None and label_swap(["a+", ""]) is None


def test_texts_have_no_other_strand(make_task, sdpa):
    with pytest.raises(ConfigError, match=r"task\.average_strands=True: bytes have no other strand"):
        data = SimpleNamespace(
            max_length=8, vocab_size=260, num_classes=2, class_names=["a", "b"], vocabulary=SimpleNamespace(name="bytes")
        )
        made(SequenceClassification, data, sdpa, average_strands=True)
    task = SequenceClassification(
        made(SequenceClassification, Bases(), sdpa).model.backbone, num_classes=3, average_strands=True
    )
    with pytest.raises(ConfigError, match=r"call task\.attach\(data\)"):
        task.eval().predict_step(Bases().batch, 0)


def test_evaluation_of_a_trainer_averages(sdpa, make_trainer):
    data = Bases(torch.tensor([0, 1, 2]))
    task = made(SequenceClassification, data, sdpa, average_strands=True)
    rows = [{name: value[row] for name, value in data.batch.items()} for row in range(3)]
    found = make_trainer().test(task, DataLoader(rows, batch_size=3), verbose=False)[0]
    with torch.no_grad():
        averaged = task.eval().step(data.batch, 0, "test").loss
        task.average_strands = False
        alone = task.step(data.batch, 0, "test").loss
    assert found["test/loss"] == pytest.approx(float(averaged), rel=1e-5) != pytest.approx(float(alone), rel=1e-5)

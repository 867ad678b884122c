"""Class weights, label smoothing, the focal factor, and figures of each class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule, Trainer
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import DataLoader

from longspan.attention import full
from longspan.config.errors import ConfigError
from longspan.models import Encoder
from longspan.tasks import SequenceClassification
from longspan.tasks.class_loss import ClassLoss, balanced_weights
from longspan.tasks.per_class import PerClass


def test_plain_settings_are_cross_entropy():
    logits, targets, weights = torch.randn(9, 4), torch.randint(4, (9,)), torch.rand(4) + 0.1
    losses = ClassLoss().single(logits, targets, weights, training=True)
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, weights, reduction="none"))
    several = torch.randint(2, (9, 4))
    torch.testing.assert_close(
        ClassLoss().several(logits, several, weights, training=True).mean(),
        F.binary_cross_entropy_with_logits(logits, several.float(), pos_weight=weights),
    )


@given(st.floats(0.0, 5.0), st.floats(0.0, 0.9), st.integers(0, 1000))
def test_smoothing_and_focus_follow_their_definitions(gamma, smoothing, seed):
    draw = torch.Generator().manual_seed(seed)
    logits, targets = torch.randn(7, 3, generator=draw, dtype=torch.float64), torch.randint(3, (7,), generator=draw)
    log_p = logits.log_softmax(-1)
    spread = F.one_hot(targets, 3) * (1 - smoothing) + smoothing / 3
    right = -(spread * log_p).sum(-1) * (1 - log_p.exp()[torch.arange(7), targets]) ** gamma
    loss = ClassLoss(smoothing, gamma)
    torch.testing.assert_close(loss.single(logits, targets, None, training=True), right)
    plain = -log_p[torch.arange(7), targets] * (1 - log_p.exp()[torch.arange(7), targets]) ** gamma
    torch.testing.assert_close(loss.single(logits, targets, None, training=False), plain)


def test_ignored_targets_cost_nothing():
    logits = torch.randn(3, 4, requires_grad=True)
    losses = ClassLoss(0.1, 2.0).single(logits, torch.tensor([-100, 1, -100]), None, training=True)
    assert losses[0] == losses[2] == 0 and losses[1] > 0
    losses.sum().backward()
    assert logits.grad[0].abs().sum() == 0 and torch.isfinite(logits.grad).all()


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0] * 7 + [1] * 2 + [2])
    found = balanced_weights([7, 2, 1], "abc")
    np.testing.assert_allclose(found, compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert balanced_weights([2, 8], "ab", total=10) == [4.0, 0.25]
    with pytest.raises(ConfigError, match="'c' has no training example"):
        balanced_weights([7, 2, 0], "abc")


def model():
    return Encoder(vocab_size=8, max_length=8, attention=full, layers=1, width=16, heads=1)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"class_weights": "equal"}, "class_weights"),
        ({"class_weights": [1.0]}, "class_weights"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        SequenceClassification(model(), num_classes=2, **settings)


class Counted(LightningDataModule):
    def __init__(self):
        super().__init__()
        self.rows = [{"tokens": torch.randint(8, (8,)), "labels": torch.tensor(int(n % 4 == 0))} for n in range(16)]

    def class_counts(self):
        return np.array([12, 4]), None

    def train_dataloader(self):
        return DataLoader(self.rows, 4)


def test_balanced_weights_come_from_the_training_data_and_stay_in_the_checkpoint(tmp_path):
    task = SequenceClassification(model(), num_classes=2, class_weights="balanced")
    trainer = Trainer(
        max_steps=2, logger=False, enable_progress_bar=False, default_root_dir=tmp_path, enable_checkpointing=False
    )
    trainer.fit(task, Counted())
    torch.testing.assert_close(task.class_weights, torch.tensor([16 / 24, 16 / 8]))
    again = SequenceClassification(model(), num_classes=2, class_weights="balanced")
    again.load_state_dict(task.state_dict())
    torch.testing.assert_close(again.class_weights, task.class_weights)


def test_figures_of_each_class_are_scikit_learns():
    predicted, true = torch.randint(3, (50,)), torch.randint(3, (50,))
    metric = PerClass(["a", "b", "c"])
    for part in (slice(0, 20), slice(20, 50)):
        metric.update(predicted[part], true[part])
    told = metric.to_record()
    assert told["confusion"] == confusion_matrix(true, predicted).tolist()
    expected = precision_recall_fscore_support(true, predicted)
    for place, row in enumerate(told["classes"]):
        found = [row[key] for key in ("precision", "recall", "f1", "support")]
        np.testing.assert_allclose(found, [figures[place] for figures in expected])


def test_figures_of_several_labels_and_of_classes_that_never_occur():
    predicted, true = torch.randint(2, (40, 3)), torch.randint(2, (40, 3))
    metric = PerClass(["a", "b", "c"], multi_label=True)
    metric.update(predicted, true)
    expected = precision_recall_fscore_support(true, predicted)
    for place, row in enumerate(metric.to_record()["classes"]):
        np.testing.assert_allclose([row["precision"], row["recall"], row["f1"]], [f[place] for f in expected[:3]])
    never = PerClass(["a", "b"])
    never.update(torch.zeros(3), torch.zeros(3))
    assert never.to_record()["classes"][1] == {"class": "b", "precision": None, "recall": None, "f1": None, "support": 0}

"""A backbone's weights go over to another task and another attention, and nothing goes over unseen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from longspan.config.errors import CheckpointError
from longspan.models import Decoder, Encoder, HeadedModel, LanguageModellingHead, SequenceClassificationHead, warm_start


def language_model(attention, **sizes):
    backbone = Decoder(vocab_size=11, max_length=32, attention=attention, **{"layers": 2, "width": 32, "heads": 2, **sizes})
    return HeadedModel(backbone, LanguageModellingHead(backbone))


def classifier(attention, **sizes):
    backbone = Encoder(
        vocab_size=sizes.pop("vocab_size", 11),
        max_length=64,
        attention=attention,
        **{"layers": 2, "width": 32, "heads": 2, **sizes},
    )
    return HeadedModel(backbone, SequenceClassificationHead(backbone, 3))


@pytest.fixture
def gated(sdpa):
    class Gated(sdpa):
        def __init__(self, **sizes):
            super().__init__(**sizes)
            self.gate = nn.Parameter(torch.zeros(sizes["heads"]))

    return Gated


def test_backbone_goes_over_and_the_head_does_not(sdpa, tmp_path):
    source, target = language_model(sdpa), classifier(sdpa)
    head = target.head.projection.weight.detach().clone()
    path = tmp_path / "run.ckpt"
    weights = {f"model.{name}": weight for name, weight in source.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 3}, path)
    report = warm_start(target, path)
    for name, weight in source.backbone.state_dict().items():
        assert torch.equal(weight, target.backbone.state_dict()[name]), name
    assert torch.equal(head, target.head.projection.weight)
    assert report.missing == report.unexpected == ()
    assert len(report.loaded) == len(source.backbone.state_dict())


def test_another_attention_is_reported(sdpa, gated):
    report = warm_start(classifier(gated), language_model(sdpa).state_dict())
    assert report.missing == ("blocks.0.mixer.attention.gate", "blocks.1.mixer.attention.gate")
    assert "left as initialised: blocks.0.mixer.attention.gate" in str(report)
    report = warm_start(classifier(sdpa), language_model(gated).state_dict())
    assert report.unexpected == ("blocks.0.mixer.attention.gate", "blocks.1.mixer.attention.gate")


def test_names_of_compiled_models_are_understood(sdpa):
    source = language_model(sdpa).state_dict()
    wrapped = {name.replace("backbone.", "backbone._orig_mod."): weight for name, weight in source.items()}
    assert warm_start(classifier(sdpa), wrapped).missing == ()


def test_other_sizes_are_refused_and_nothing_is_loaded(sdpa):
    target = classifier(sdpa, vocab_size=12)
    before = target.backbone.blocks[0].mlp.up.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"embedding.weight is \[11, 32\] in the checkpoint and \[12, 32\]"):
        warm_start(target, language_model(sdpa).state_dict())
    assert torch.equal(before, target.backbone.blocks[0].mlp.up.weight)


def test_a_deeper_model_needs_leave(sdpa):
    source = language_model(sdpa).state_dict()
    with pytest.raises(CheckpointError, match=r"lacks blocks\.2\."):
        warm_start(classifier(sdpa, layers=3), source)
    assert all(
        name.startswith("blocks.2.") for name in warm_start(classifier(sdpa, layers=3), source, allow_missing=True).missing
    )


def test_what_is_no_checkpoint_is_named(sdpa, tmp_path):
    with pytest.raises(CheckpointError, match="is no file"):
        warm_start(classifier(sdpa), tmp_path / "absent.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    with pytest.raises(CheckpointError, match="no weights"):
        warm_start(classifier(sdpa), tmp_path / "empty.ckpt")
    with pytest.raises(CheckpointError, match="has no transformer"):
        warm_start(nn.Linear(2, 2), language_model(sdpa).state_dict())
    with pytest.raises(CheckpointError, match="no backbone weights"):
        warm_start(classifier(sdpa), {"something.else": torch.zeros(1)})

"""Losses a token, targets of language modelling, masks of masked modelling."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.tasks.class_loss import ClassLoss
from longspan.tasks.language_modelling import next_tokens
from longspan.tasks.losses import IGNORED, token_losses, token_predictions, weighted_mean
from longspan.tasks.masking import mask_tokens


@given(tokens=st.integers(1, 40), at_once=st.integers(1, 200), weighted=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pieces_give_the_whole_loss_and_its_gradients(tokens, at_once, weighted, seed):
    torch.manual_seed(seed)
    head = torch.nn.Linear(6, 5)
    hidden = torch.randn(tokens, 6, requires_grad=True)
    targets = torch.randint(5, (tokens,)).masked_fill(torch.rand(tokens) < 0.3, IGNORED)
    weights = torch.rand(5) + 0.1 if weighted else None
    losses = token_losses(
        head,
        hidden,
        targets,
        classes=5,
        loss=partial(ClassLoss().single, weights=weights, training=True),
        logits_at_once=at_once,
    )
    loss, count = weighted_mean(losses, targets, weights)
    assert count == (targets != IGNORED).sum()
    if count:
        torch.testing.assert_close(loss, F.cross_entropy(head(hidden), targets, weights))
        expected = torch.autograd.grad(F.cross_entropy(head(hidden), targets, weights), [hidden, *head.parameters()])
        found = torch.autograd.grad(loss, [hidden, *head.parameters()])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    else:
        assert loss == 0 and loss.requires_grad
    best, sure = token_predictions(head, hidden, classes=5, logits_at_once=at_once)
    torch.testing.assert_close((sure, best), tuple(head(hidden).softmax(-1).max(-1)))


def test_half_precision_logits_are_judged_in_single():
    head = torch.nn.Linear(8, 300).bfloat16()
    losses = token_losses(head, torch.randn(4, 8).bfloat16(), torch.arange(4), classes=300)
    assert losses.dtype == torch.float32


def test_targets_are_the_next_tokens_of_the_same_document():
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])
    ignored = IGNORED
    assert next_tokens(tokens).tolist() == [[2, 3, 4, ignored], [6, 7, 0, ignored]]
    assert next_tokens(tokens, lengths=torch.tensor([4, 3]))[1].tolist() == [6, 7, ignored, ignored]
    segments = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 2]])
    assert next_tokens(tokens, segments=segments).tolist() == [[2, ignored, 4, ignored], [ignored, ignored, 0, ignored]]


def masked(tokens, seed=0, **settings):
    return mask_tokens(tokens, generator=torch.Generator().manual_seed(seed), mask_id=11, ordinary_ids=range(10), **settings)


def test_ordinary_ids_come_in_any_order():
    tokens = torch.randint(0, 10, (3, 50), generator=torch.Generator().manual_seed(0))
    shuffled = [7, 0, 3, 9, 1, 8, 2, 6, 5, 4]
    found = [
        mask_tokens(view, generator=torch.Generator().manual_seed(1), mask_id=11, ordinary_ids=ids, masked_share=0.9)
        for view, ids in ((tokens, range(10)), (tokens, shuffled), (tokens.T.contiguous().T, torch.arange(10)))
    ]
    assert (found[0][1] != IGNORED).float().mean() > 0.8
    for inputs, targets in found[1:]:
        assert torch.equal(inputs, found[0][0]) and torch.equal(targets, found[0][1])


def test_shares_of_masking_are_those_of_bert():
    tokens = torch.randint(10, (64, 1000))
    inputs, targets = masked(tokens)
    chosen = targets != IGNORED
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    assert (inputs[chosen] == 11).float().mean().item() == pytest.approx(0.8, abs=0.02)
    changed = (inputs[chosen] != 11) & (inputs[chosen] != tokens[chosen])
    assert changed.float().mean().item() == pytest.approx(0.1 * 0.9, abs=0.02)  # one in ten draws is the token itself
    assert inputs[chosen][changed].max() < 10


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_masks_stay_within_sequences_and_are_never_empty(lengths, seed):
    tokens = torch.full((len(lengths), 12), 10)
    for row, length in enumerate(lengths):
        tokens[row, :length] = 3
    inputs, targets = masked(tokens, seed, lengths=torch.tensor(lengths))
    again = masked(tokens, seed, lengths=torch.tensor(lengths))
    assert torch.equal(inputs, again[0]) and torch.equal(targets, again[1])
    for row, length in enumerate(lengths):
        assert (targets[row, length:] == IGNORED).all() and (inputs[row, length:] == 10).all()
        assert (targets[row, :length] != IGNORED).any() or length == 0


def test_masks_repeat_in_validation_and_vary_in_training(make_task, make_data):
    task = make_task("masked_modelling")
    batch = next(iter(make_data("masked_modelling").train_dataloader()))
    hidden = {place: task.hide(batch, *place)[1] for place in [(0, "val"), (1, "val"), (0, "train"), (1, "train")]}
    assert torch.equal(hidden[0, "val"], task.hide(batch, 0, "val")[1])
    assert len({tuple(targets.flatten().tolist()) for targets in hidden.values()}) == 4


def test_bits_of_an_untrained_model_are_near_uniform_and_add_up(make_task, make_data):
    task, data = make_task("language_modelling").eval(), make_data("language_modelling")
    batch = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        scores = task.predict_step(batch, 0)
        step = task.step(batch, 0, "val")
    assert torch.equal(scores["tokens"], batch["lengths"] - 1)
    assert scores["bits"].sum().item() == pytest.approx(float(step.updates["losses"][0]) / math.log(2), rel=1e-5)
    assert scores["bits_per_token"].mean().item() == pytest.approx(math.log2(12), abs=1.2)

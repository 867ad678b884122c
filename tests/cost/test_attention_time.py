"""Attention's share of a step by the clock: forward and backward, nothing else, and without a trace afterwards."""

from __future__ import annotations

import time

import pytest
import torch
from tiny_run import TinyData, TinyTask, tiny_trainer

from longspan.cost import Cost
from longspan.cost.measured import MeasuredCost


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        time.sleep(seconds)
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


class SlowAttention(torch.nn.Module):
    def forward(self, q, k, v):
        return _Slow.apply(q + k + v, 0.01)


class Layered(torch.nn.Module):
    """Two layers of attention that take 20 ms each in a step, and 40 ms beside them."""

    heads, layers = 2, 2

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Linear(1, 3)
        self.attentions = torch.nn.ModuleList([SlowAttention(), SlowAttention()])

    def attention_modules(self):
        return list(self.attentions)

    def cost(self, length):
        return Cost(live_pairs=length, visited_pairs=length, parameters=6)

    def forward(self, x):
        q, k, v = _Slow.apply(self.weight(x), 0.02).chunk(3, dim=-1)
        for attention in self.attentions:
            q = attention(q, k, v)
        return q


class LayeredTask(TinyTask):
    def __init__(self):
        super().__init__()
        self.model = Layered()

    def training_step(self, batch, index):
        return self.model(batch["tokens"].float()[..., None]).pow(2).mean()

    def validation_step(self, batch, index):
        super().validation_step(batch, index)
        self.model(batch["tokens"].float()[..., None])


def fitted(folder, **settings):
    meter, task = MeasuredCost(warmup_steps=1, attention_steps=3), LayeredTask()
    settings = {"max_steps": 12, "val_check_interval": 4, "limit_train_batches": 8, **settings}
    tiny_trainer(folder, [meter], **settings).fit(task, TinyData())
    return meter, task


def test_attention_is_half_of_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr(MeasuredCost, "_times_attention", lambda self: self._stepped % 3 == 2)
    meter, task = fitted(tmp_path)
    costs = {name: value for name, (value, _) in meter.costs().items()}
    assert 40 <= costs["attention_time"] < 60
    assert 0.4 < costs["attention_time_share"] < 0.55
    assert len(meter._attention) == 4 and len(meter._step_seconds) == 7, "timed steps count for nothing else"
    for module in task.model.attentions:
        assert not module._forward_hooks and not module._backward_hooks and not module._backward_pre_hooks


def test_accumulated_batches_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(MeasuredCost, "_times_attention", lambda self: self._stepped == 2)
    meter, _ = fitted(tmp_path, accumulate_grad_batches=2, max_steps=4, val_check_interval=None)
    assert 80 <= meter.costs()["attention_time"][0] < 120


@pytest.mark.parametrize(("steps", "timed"), [(12, 0), (60, 1), (130, 3), (1000, 3)])
def test_steps_are_spread_and_few(tmp_path, steps, timed):
    meter = MeasuredCost(warmup_steps=5, attention_steps=3)
    chosen = []
    for step in range(steps):
        meter._stepped = step
        if meter._measures() and meter._times_attention():
            chosen.append(step)
    assert len(chosen) == timed and all(step >= 5 for step in chosen)


def test_a_model_of_this_project_tells_its_share(tmp_path, monkeypatch):
    from functools import partial

    from longspan.attention import local
    from longspan.models import transformer

    monkeypatch.setattr(MeasuredCost, "_times_attention", lambda self: self._stepped == 3)

    class Own(TinyTask):
        def __init__(self, **settings):
            super().__init__()
            sizes = {"layers": 2, "width": 32, "heads": 2, **settings}
            self.model = transformer(causal=True, vocab_size=16, max_length=16, attention=partial(local, window=4), **sizes)

        def training_step(self, batch, index):
            return self.model(batch["tokens"]).pow(2).mean()

    for settings in ({}, {"activation_checkpointing": True}):
        meter = MeasuredCost(warmup_steps=1)
        tiny_trainer(tmp_path, [meter], max_steps=5, val_check_interval=None).fit(Own(**settings), TinyData())
        assert 0 < meter.costs()["attention_time_share"][0] < 1
    meter = MeasuredCost(warmup_steps=1)
    task = Own()
    object.__setattr__(task.model.settings, "compile", True)  # as a compiled model says of itself; nothing is compiled here
    tiny_trainer(tmp_path, [meter], max_steps=5, val_check_interval=None).fit(task, TinyData())
    assert "attention_time" not in meter.costs(), "a hook would have it compiled anew"

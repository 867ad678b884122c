"""Which parameters decay; learning rates by step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from longspan.config.errors import ConfigError
from longspan.tasks import adamw, decay_groups, undecayed_names, warmup_constant, warmup_cosine
from longspan.tasks.optimizers import own_rates
from longspan.tasks.schedules import warmup_length


def test_norms_biases_embeddings_and_marked_parameters_do_not_decay(make_task):
    task = make_task("masked_modelling", sizes={"qk_norm": True})
    task.model.backbone.blocks[0].mlp.up.weight.no_weight_decay = True
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in decay_groups(task))
    assert decayed | spared == set(names.values()) and not decayed & spared
    assert all(name.endswith((".qkv.weight", ".out.weight", ".up.weight", ".down.weight", "dense.weight")) for name in decayed)
    assert "model.backbone.embedding.weight" in spared  # and with it the tied head
    assert "model.backbone.blocks.0.mlp.up.weight" in spared
    assert "model.backbone.blocks.1.mlp.up.weight" in decayed
    undecayed = undecayed_names(task, decay_embeddings=True)
    with_embeddings = {names[id(p)] for p in decay_groups(task, undecayed)[0]["params"]}
    assert with_embeddings == decayed | {"model.backbone.embedding.weight"}
    assert "weight_decay" not in decay_groups(task)[0] and decay_groups(task)[1]["weight_decay"] == 0.0


def test_groups_survive_wrapping(make_task):
    task = make_task("single_label")
    undecayed = undecayed_names(task)
    plain = [len(group["params"]) for group in decay_groups(task)]
    task.model.backbone.blocks[0] = torch.compile(task.model.backbone.blocks[0], backend="eager")
    for parameter in task.parameters():
        parameter.data = parameter.data.flatten()  # as sharding leaves them
    assert [len(group["params"]) for group in decay_groups(task, undecayed)] == plain


def test_frozen_parameters_are_left_out():
    module = nn.Linear(3, 3)
    module.weight.requires_grad_(False)
    assert [len(group["params"]) for group in decay_groups(module)] == [1]


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"lr": 0}, "lr"), ({"betas": (1.0, 0.9)}, "betas"), ({"eps": 0}, "eps"), ({"weight_decay": -1}, "weight_decay")],
)
def test_wrong_settings_are_named(settings, key):
    with pytest.raises(ConfigError, match=f"optimizer.{key}"):
        adamw(nn.Linear(2, 2).parameters(), **{"lr": 1e-3, **settings})


def rates(schedule, steps, **settings):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = schedule(optimizer, total_steps=steps, **settings)
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def test_warm_up_then_half_a_cosine():
    seen = rates(warmup_cosine, 101, warmup_steps=20, final_fraction=0.1)
    assert seen[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert seen[20] == 1.0 and seen[-1] == pytest.approx(0.1)
    assert seen[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates(warmup_cosine, 101, warmup_steps=20 / 101) == pytest.approx(seen)


@given(steps=st.integers(1, 300), warmup=st.one_of(st.integers(0, 400), st.floats(0, 0.99)), final=st.floats(0, 1))
def test_rates_stay_in_range(steps, warmup, final):
    for schedule, settings in ((warmup_cosine, {"final_fraction": final}), (warmup_constant, {})):
        seen = rates(schedule, steps, warmup_steps=warmup, **settings)
        assert all(0 <= rate <= 1 for rate in seen) and max(seen) == pytest.approx(1.0)
    assert warmup_length(warmup, steps) <= steps / 2


@pytest.mark.parametrize("warmup", [-1, 1.5, -0.1])
def test_wrong_warm_ups_are_named(warmup):
    with pytest.raises(ConfigError, match=r"scheduler\.warmup_steps"):
        warmup_length(warmup, 100)


def test_wrong_final_fractions_are_named():
    with pytest.raises(ConfigError, match=r"scheduler\.final_fraction"):
        rates(warmup_cosine, 10, final_fraction=2.0)


@pytest.mark.filterwarnings("ignore")
def test_a_run_without_an_end_is_refused(make_task, make_data, make_trainer):
    with pytest.raises(ConfigError, match=r"trainer\.max_steps"):
        make_trainer(max_epochs=-1).fit(make_task("single_label"), make_data("single_label"))


@pytest.mark.parametrize(
    ("precision", "clip", "expected"), [("bf16-mixed", 1.0, False), ("bf16-mixed", None, None), ("32-true", 1.0, None)]
)
def test_what_lightning_would_refuse_to_clip_is_not_fused(make_task, make_data, make_trainer, precision, clip, expected):
    asked = []

    def maker(groups, fused=None):
        asked.append(fused)
        return torch.optim.AdamW(groups, lr=1e-3)

    task = make_task("single_label")
    task.optimizer_maker = maker
    make_trainer(max_steps=1, precision=precision, gradient_clip_val=clip).fit(task, make_data("single_label"))
    assert asked == [expected]


def test_modules_may_set_rates_of_their_own():
    class Gates(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(2, 3))

        def learning_rates(self, total_steps):
            return {"gate": 10.0 / total_steps}

    module = nn.Sequential(nn.Linear(2, 2), Gates())
    groups = decay_groups(module, rates=own_rates(module, 100))
    assert [(len(group["params"]), group.get("lr"), group.get("weight_decay")) for group in groups] == [
        (1, None, None),
        (1, None, 0.0),
        (1, 0.1, 0.0),
    ]
    optimizer = adamw(groups, lr=1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0, 0.1]

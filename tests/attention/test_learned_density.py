"""The density that learned attention has as it trains: reached with the most useful gates, and not exceeded from then on."""

import pytest
import torch
from learned_modules import made

from longspan.attention.learned.budget import Schedule, chosen_gates


def train_on(module, useful, steps=200, look=lambda step: None):
    """Gates whose task is to keep `useful` [H, G] open: each costs what it is short of 1. `look` comes after each step."""
    optimizer = torch.optim.Adam([module.log_alpha], lr=0.1, betas=(0.9, 0.95))
    for step in range(steps):
        module.train()
        module.begin_step(step, steps)
        module._patterns()
        loss = (useful * (1 - module.log_gates().exp())).sum() + module.auxiliary_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        look(step)


@pytest.mark.parametrize("causal", [True, False])
def test_the_density_is_reached_with_the_most_useful_gates(causal):
    module = made(causal=causal, strides=[], density=0.15, max_length=512)
    full = module.cost(512).visited_pairs
    useful = 0.002 * torch.randn(module.log_alpha.shape, generator=torch.Generator().manual_seed(1)).exp()
    train_on(module, useful)
    assert 0.07 < module.expected_density() < 0.16
    assert module.cost(512).visited_pairs < 0.6 * full
    module.harden()
    assert 0.13 < module.density() <= 0.15
    assert module.density() == pytest.approx(module.cost(512).density(512, heads=2))
    best = chosen_gates(useful / module.pairs.clamp(min=1), module.pairs, module.budget, torch.ones_like(module.open))
    assert (useful * module.open).sum() > 0.9 * (useful * best).sum()


def test_gates_that_do_nothing_close_and_the_useful_ones_stay():
    # with room for more gates, useless ones are half open at times, to hold the density
    module = made(strides=[], density=0.1, max_length=256)
    useful = torch.zeros(2, module.candidates.gates)
    wanted = [(0, module.candidates.names.index("offset 7")), (1, module.candidates.names.index("offset 3"))]
    for place in wanted:
        useful[place] = 0.1
    full = module.cost(256).visited_pairs
    train_on(module, useful)
    assert module.cost(256).visited_pairs < 0.5 * full
    module.harden()
    assert all(module.open[place] for place in wanted) and module.density() <= 0.1


@pytest.mark.parametrize(
    "more", [{"causal": True}, {"causal": False, "strides": [5], "global_blocks": 2}], ids=["causal", "both ways"]
)
@pytest.mark.parametrize("times", [1.0, 1.2])
def test_from_the_target_on_no_more_is_open_than_asked_for(times, more):
    settings = {"density": 0.12, "max_length": 256, "open_until": 0.2, "reached_at": 0.61, "update_every": 7}
    module = made(**{"strides": [], **more, **settings, "open_at_most": times})
    useful = 0.002 * torch.randn(module.log_alpha.shape, generator=torch.Generator().manual_seed(2)).exp()
    seen = []

    def look(step):
        cost = module.cost(256)
        seen.append((step, module.density(), module.density_asked(), cost.visited_pairs))
        assert cost.density(256, heads=2) == pytest.approx(module.density())

    train_on(module, useful, 100, look)
    assert all(density == asked for step, density, asked, _ in seen if step <= 20)
    updated = [(density, asked) for step, density, asked, _ in seen if step > 20 and step % 7 == 0]
    assert all(density <= times * asked for density, asked in updated) and min(density for density, _ in updated) > 0
    # step 61 is no multiple of 7
    reached = [(density, visited) for step, density, asked, visited in seen if step >= 61]
    assert all(asked == 0.12 for step, _, asked, _ in seen if step >= 61) and seen[60][2] > 0.12
    assert all(0.09 < density <= times * 0.12 for density, _ in reached)
    # a query's own block is computed whole, and half of it is not live where attention looks back only
    assert max(visited for _, visited in reached) < 0.45 * seen[0][3]
    module.harden()
    assert module.density() <= 0.12 == module.density_asked()


def test_gates_without_room_are_not_driven_open():
    module = made(density=0.2, strides=[], open_at_most=1.0).train()
    with torch.no_grad():
        module.log_alpha[:] = torch.tensor([0.0, 0.0, *6 * [-8.0]])  # two hesitate, so that the expected density is too low
    module.begin_step(9, 10)
    module._patterns()
    module.auxiliary_loss().backward()
    left = module.budget - int((module.open * module.pairs).sum())
    fits = (module.pairs <= left).expand_as(module.open) & ~module.open & (module.pairs > 0)
    assert 0 < int(fits.sum()) < int((~module.open & (module.pairs > 0)).sum())
    driven = module.log_alpha.grad < 0
    assert driven.equal(module.open | fits) and not module.log_alpha.grad[~driven].any()


def test_the_budget_is_spent_on_the_best_gates_that_fit():
    score = torch.tensor([[3.0, 2.0, 1.0, 0.0], [2.5, -1.0, 5.0, 0.0]])
    pairs = torch.tensor([4, 3, 6, 0])
    allowed = torch.ones(2, 4, dtype=torch.bool)
    assert chosen_gates(score, pairs, 14, allowed).int().tolist() == [[1, 0, 0, 0], [1, 0, 1, 0]]
    assert chosen_gates(score, pairs, 13.5, allowed).int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]
    allowed[1, 2] = False
    assert chosen_gates(score, pairs, 9, allowed).int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]


def test_the_target_falls_from_full_to_the_density():
    schedule = Schedule(0.2, 0.6, 0.8)
    targets = [schedule.target(p / 10, 0.1) for p in range(11)]
    assert targets[0] == targets[2] == 1.0 and targets[6:] == [0.1] * 5
    assert targets == sorted(targets, reverse=True)
    assert Schedule(0.5, 0.5, 0.5).target(0.5, 0.1) == 1.0 and Schedule(0.5, 0.5, 0.5).target(0.51, 0.1) == 0.1

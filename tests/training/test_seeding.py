"""What a seeded run does not pay for."""

import torch

from longspan.training.seeding import seed_run


def test_new_tensors_are_not_filled_where_a_run_is_deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.utils.deterministic.fill_uninitialized_memory = True
        seed_run(0)
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert not torch.empty(1 << 20).isnan().all()
    finally:
        torch.use_deterministic_algorithms(before)

"""Variants that choose by content under autocast and with recomputed activations: exact choices, finite gradients."""

from functools import partial

import pytest
import torch
from chosen_by_content import PLACE, draw

import longspan.attention as variants
from longspan.models import Decoder

CASES = [
    ("moba", {"block_size": 16, "top_k": 3}),
    ("nsa", {"block_size": 16, "top_k": 4, "compressed_block": 8, "compressed_stride": 4, "window": 16}),
    ("reformer", {"chunk": 16, "rounds": 2}),
    ("routing", {"clusters": 4}),
    ("routing", {"clusters": 4, "membership": "balanced"}),
    ("sinkhorn", {"block_size": 16}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_autocast_changes_little(name, settings):
    torch.manual_seed(0)
    module = getattr(variants, name)(**PLACE | settings).eval()
    q, k, v = (x.detach().bfloat16().float().requires_grad_() for x in draw(70))
    expected = module(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(q, k, v)
    assert out.dtype == torch.bfloat16
    # Choices are made alike, so the difference is that of rounding.
    assert ((out.float() - expected).norm() / expected.norm()).item() < 1e-2


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_step_of_a_model_with_activations_recomputed(name, settings):
    sizes = {"vocab_size": 9, "max_length": 70, "layers": 2, "width": 32, "heads": 2, "kv_heads": 1}
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        maker = partial(getattr(variants, name), **settings)
        model = Decoder(attention=maker, activation_checkpointing=recompute, **sizes).train()
        torch.manual_seed(1)
        model(torch.randint(0, 9, (2, 70)), lengths=torch.tensor([70, 33])).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain.isfinite().all()
        torch.testing.assert_close(again, plain)


def test_means_of_float16_numbers_do_not_overflow():
    module = variants.compressed(**PLACE | {"window": 16, "rate": 16}).eval()
    q, k, v = (x.detach().half() for x in draw(70))
    out = module(q, k, 0 * v + 6e4)
    torch.testing.assert_close(out, torch.full_like(out, 6e4))

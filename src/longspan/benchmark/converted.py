"""Times converted self-attention modules of Longformer and BigBird beside transformers' own, in one run.

Each row is one module of base size (width 768, 12 heads), forward and backward through its projections too.

Legend: B batch, T tokens, C model width.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longspan.benchmark.timing import Work, peak_memory, time_interleaved
from longspan.config.errors import BenchmarkError
from longspan.integrations.huggingface import convert

WIDTH, HEADS, BLOCK, WINDOW, GLOBALS = 768, 12, 64, 512, 1
Call = Callable[[torch.nn.Module, Tensor], Tensor]


def compare_converted(length: int, device: str, seconds: float = 1.0, batches: Sequence[int] = (1, 4)) -> list[dict[str, Any]]:
    """A row a model and batch: ms and peak MiB of a step on each side, how many times faster, largest difference of outputs.

    On a GPU a step is timed twice: launched on an idle device, where the host's launches count in full, and behind other
    work, as in a model whose host runs ahead ("host ahead": the device's part, and `host_ms` beside it).

    Raises:
        BenchmarkError: transformers is not installed.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise BenchmarkError(f"transformers is not installed: {error}") from None
    rows = []
    for batch, (name, make) in itertools.product(batches, (("longformer", _longformer), ("bigbird", _bigbird))):
        torch.manual_seed(0)
        module, call = make(length, batch, device)
        dtype = _dtype(device)
        own = module.to(device, dtype).train()
        ours = convert(copy.deepcopy(own))
        x = torch.randn(batch, length, WIDTH, device=device, dtype=dtype, requires_grad=True)
        weight = torch.randn_like(x)

        def step(one: torch.nn.Module, call: Call = call, x: Tensor = x, weight: Tensor = weight) -> None:
            x.grad = None
            one.zero_grad(set_to_none=True)
            call(one, x).backward(weight)

        with torch.no_grad():
            difference = float((call(own, x).float() - call(ours, x).float()).abs().max())
        sides: dict[str, Work] = {"longspan": partial(step, ours), "transformers": partial(step, own)}
        peaks = {side: peak_memory(work, device) for side, work in sides.items()}
        times = time_interleaved(sides, device, seconds, most=30)
        ahead = time_interleaved(sides, device, seconds, most=30, queued=True) if device.startswith("cuda") else times
        rows.append(
            {
                "case": f"{name} self-attention, converted",
                "shape": {"B": batch, "T": length, "C": WIDTH, "heads": HEADS, "dtype": str(dtype).removeprefix("torch.")},
                "sides": {
                    side: {
                        "both": {**times[side].plain(), "peak_mib": peaks[side] / (1 << 20)},
                        "both, host ahead": ahead[side].plain(),
                    }
                    for side in sides
                },
                "speedup": times["transformers"].seconds / times["longspan"].seconds,
                "speedup_host_ahead": ahead["transformers"].seconds / ahead["longspan"].seconds,
                "memory_share": peaks["longspan"] / peaks["transformers"],
                "largest_difference": difference,
            }
        )
    return rows


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def _longformer(length: int, batch: int, device: str) -> tuple[torch.nn.Module, Call]:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_window=[WINDOW], attention_probs_dropout_prob=0.0
    )
    module = LongformerSelfAttention(config, 0)
    mask = torch.zeros(batch, length, device=device)
    mask[:, :GLOBALS] = 10_000.0

    def call(one: torch.nn.Module, x: Tensor) -> Tensor:
        return one(x, mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0, is_global_attn=True)[0]

    return module, call


def _bigbird(length: int, batch: int, device: str) -> tuple[torch.nn.Module, Call]:
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    config = BigBirdConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        block_size=BLOCK,
        max_position_embeddings=length,
        attention_probs_dropout_prob=0.0,
    )
    module = BigBirdBlockSparseAttention(config, seed=0)
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones(batch, length, device=device), BLOCK
    )
    dtype = _dtype(device)
    masks = [part.to(dtype) for part in (band, rows, columns, blocked, blocked)]  # once, as a model makes them for all layers

    def call(one: torch.nn.Module, x: Tensor) -> Tensor:
        return one(x, *masks)[0]

    return module, call

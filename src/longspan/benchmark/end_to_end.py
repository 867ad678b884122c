"""A masked-modelling training step of base size: Longspan's encoder beside transformers' BigBird, in one run.

Both: 12 layers, width 768, 12 heads, MLP width 3072, BigBird blocks of 64 (3 window, 3 random, 2 global), the same
vocabulary, bf16 autocast over float32 weights, AdamW, 15% of tokens hidden. Each computes its own loss as its own users would.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType

from longspan.benchmark.timing import peak_memory, time_interleaved
from longspan.config.errors import BenchmarkError
from longspan_kernels.launch.launcher import KERNELS

Step = Callable[[], Any]


@dataclass(frozen=True)
class Size:
    """What both models share."""

    batch: int = 4
    length: int = 4096
    layers: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 3072
    vocab_size: int = 32000
    block_size: int = 64
    random_blocks: int = 3
    masked_share: float = 0.15


def longspan_step(
    size: Size, device: str, compile: bool | str = False, attention: str = "bigbird"
) -> tuple[Step, torch.nn.Module]:
    """One optimizer step of Longspan's masked-modelling task."""
    from longspan.attention import bigbird, full
    from longspan.models import Encoder
    from longspan.tasks import MaskedModelling

    chosen = partial(bigbird, block_size=size.block_size, random_blocks=size.random_blocks) if attention == "bigbird" else full
    backbone = Encoder(
        vocab_size=size.vocab_size,
        max_length=size.length,
        attention=chosen,
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        mlp="gelu",
        mlp_width=size.mlp_width,
        compile=compile,
    )
    task = MaskedModelling(backbone, mask_id=4, masked_share=size.masked_share).to(device).train()
    tokens = torch.randint(5, size.vocab_size, (size.batch, size.length), device=device)
    return _step(task, lambda: task.step({"tokens": tokens}, 0, "train").loss, device), task


def transformers_step(size: Size, device: str) -> tuple[Step, torch.nn.Module]:
    """One optimizer step of transformers' BigBirdForMaskedLM, block_sparse."""
    try:
        from transformers import BigBirdConfig, BigBirdForMaskedLM
    except ImportError as error:
        raise BenchmarkError(f"transformers is not installed: {error}") from None
    config = BigBirdConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.mlp_width,
        max_position_embeddings=size.length,
        attention_type="block_sparse",
        block_size=size.block_size,
        num_random_blocks=size.random_blocks,
        use_cache=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model: torch.nn.Module = BigBirdForMaskedLM(config)
    model = model.to(device).train()
    tokens = torch.randint(5, size.vocab_size, (size.batch, size.length), device=device)
    labels = torch.where(torch.rand(tokens.shape, device=device) < size.masked_share, tokens, -100)
    return _step(model, lambda: model(input_ids=tokens, labels=labels).loss, device), model


def _step(module: torch.nn.Module, loss_of: Callable[[], torch.Tensor], device: str) -> Step:
    kind = device.split(":")[0]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=kind == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind, torch.bfloat16):
            loss = loss_of()
        loss.backward()
        optimizer.step()

    return step


def attention_share(step: Step, device: str) -> float | None:
    """Share of the device's time that Longspan's attention kernels take in a step, from a profiler pass."""
    if not device.startswith("cuda"):
        return None
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        step()
        torch.cuda.synchronize()
    # By kernel: what a CUDA graph replays belongs to no op.
    events = [e for e in profile.key_averages() if e.device_type == DeviceType.CUDA]
    total = sum(e.self_device_time_total for e in events)
    own = sum(e.self_device_time_total for e in events if e.key in KERNELS)
    return own / total if total else None


def compare_steps(size: Size, device: str, seconds: float = 5.0, compile: bool | str = False) -> dict[str, Any]:
    """Both sides timed in turn; tokens a second, peak memory, parameters, and the ratios."""
    works: dict[str, Step] = {}
    sides: dict[str, dict[str, Any]] = {}
    makers = {
        "longspan": lambda: longspan_step(size, device, compile),
        "transformers BigBird": lambda: transformers_step(size, device),
    }
    for name, make in makers.items():
        try:
            step, module = make()
            step()
        except Exception as error:
            sides[name] = {"unavailable": f"{type(error).__name__}: {error}"[:300]}
            continue
        parameters = sum(p.numel() for p in module.parameters())
        del module
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        # Peak of a step over what lies there between steps, plus what does: weights, the last gradients, AdamW's two states.
        own = parameters * 4 * (1 + 1 + 2)
        sides[name] = {"parameters": parameters, "peak_mib": (peak_memory(step, device) + own) / (1 << 20)}
        works[name] = step
    tokens = size.batch * size.length
    for name, measured in time_interleaved(works, device, seconds).items():
        sides[name] |= {"step": measured.plain(), "tokens_per_second": tokens / measured.seconds}
    row: dict[str, Any] = {"case": "masked modelling, base size", "size": vars(size), "compiled": compile, "sides": sides}
    if "longspan" in works:
        row["attention_share"] = attention_share(works["longspan"], device)
    if len(works) == 2:
        ours, theirs = sides["longspan"], sides["transformers BigBird"]
        row["speedup"] = ours["tokens_per_second"] / theirs["tokens_per_second"]
        row["memory_ratio"] = ours["peak_mib"] / theirs["peak_mib"]
    return row

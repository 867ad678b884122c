"""Forward and backward of many kinds of call at odd sizes, for a memory checker; no test of results.

python tests/gpu/memory_check.py [NAME ...]    # once, so that the kernels are compiled
PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/gpu/memory_check.py
"""

from __future__ import annotations

import sys
import time

import torch

from longspan import sparse_attention
from longspan.attention import moba, nsa
from longspan.patterns import BigBird, Fixed, Full, Local, Longformer, Pattern, Strided

PATTERNS: dict[str, tuple[Pattern, bool]] = {
    "full": (Full(), False),
    "causal": (Full(), True),
    "local": (Local(100), True),
    "bigbird": (BigBird(64, 3, 1, 2), False),
    "longformer": (Longformer(100, (0, 1, 200)), False),
    "fixed": (Fixed(32, 4), True),
    "local or strided": (Local(16) | Strided(16), True),
}


def tensors(length: int, heads: int, key_heads: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = [(2, h, length, width) for h in (heads, key_heads, key_heads)]
    return [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]


def main(names: list[str]) -> None:
    began = time.perf_counter()

    def done(name: str) -> None:
        torch.cuda.synchronize()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)

    for name, (pattern, causal) in PATTERNS.items():
        if names and name not in names:
            continue
        for length, key_heads, width in ((333, 2, 64), (300, 1, 40), (1111, 2, 128)):
            q, k, v = tensors(length, 2, key_heads, width, torch.bfloat16)
            sparse_attention(q, k, v, pattern, causal=causal, backend="triton").square().sum().backward()
        q, k, v = tensors(333, 2, 2, 64, torch.float16)
        options = {
            "lengths": torch.tensor([333, 77], device="cuda"),
            "dropout_p": 0.1,
            "segments": (torch.arange(333, device="cuda") // 100).expand(2, 333),
        }
        sparse_attention(q, k, v, pattern, causal=causal, backend="triton", **options).square().sum().backward()
        done(name)
    if names and "others" not in names:
        return
    q, k, v = tensors(333, 2, 2, 64, torch.bfloat16)
    bias = torch.randn(2, 6, 6, device="cuda", requires_grad=True)
    sparse_attention(q, k, v, BigBird(64, 3, 1, 2), backend="triton", block_bias=bias).square().sum().backward()
    done("bias")
    for variant in (moba, nsa):
        q, k, v = tensors(333, 2, 1, 64, torch.bfloat16)
        module = variant(heads=2, kv_heads=1, head_dim=64, causal=True).cuda()
        module(q, k, v, lengths=torch.tensor([333, 77], device="cuda")).square().sum().backward()
        done(variant.__name__)


if __name__ == "__main__":
    main(sys.argv[1:])

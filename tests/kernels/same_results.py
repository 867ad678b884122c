"""Draws attention calls from a seed and hashes their outputs and gradients, to compare two versions of the code bit by bit.

    git worktree add --detach ../old COMMIT
    PYTHONPATH=../old/src:../old/kernels python tests/kernels/same_results.py --save old.json
    python tests/kernels/same_results.py --against old.json
    python tests/kernels/same_results.py --device cuda --calls 100 --save old.json   # on a GPU

Only public names are used, so that one script runs on both. On a CPU the calls are spread over the plain-torch backend, the
dense one and the Triton kernels under Triton's interpreter; on a GPU all of them take the compiled kernels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CPU_BACKENDS = ("triton", "triton", "blocked", "blocked", "dense")


def pattern_of(draw: random.Random, length: int, heads: int, depth: int = 0) -> Any:
    """A pattern of any family, a composition now and then."""
    from longspan import patterns

    def table(rows: int) -> Tensor:
        side = -(-length // 32)
        return torch.rand(rows, side, side, generator=torch.Generator().manual_seed(draw.randrange(1 << 30))) < 0.3

    def positions() -> tuple[int, ...]:
        return tuple(sorted({draw.randrange(length) for _ in range(draw.randint(1, 6))}))

    families: list[Callable[[], Any]] = [
        lambda: patterns.Full(),
        lambda: patterns.Local(draw.randint(1, 90), draw.choice((1, 1, 1, 3))),
        lambda: patterns.Strided(draw.choice((2, 5, 16, 40))),
        lambda: patterns.Fixed(draw.choice((16, 40, 64)), draw.choice((1, 4, 8))),
        lambda: patterns.Global(first=draw.randint(1, 70)),
        lambda: patterns.Global(positions=positions()),
        lambda: patterns.Global(positions=tuple(range(3, length, 8))),
        lambda: patterns.Random(draw.randint(1, 3), draw.choice((16, 32, 64)), draw.randrange(100)),
        lambda: patterns.BlockTable(table(heads if draw.random() < 0.5 else 1), 32),
        lambda: patterns.BigBird(draw.choice((16, 32, 64)), draw.choice((1, 3)), draw.randint(0, 2), draw.randint(0, 2), 7),
        lambda: patterns.Longformer(draw.randint(2, 80), positions()),
    ]
    if depth == 0 and draw.random() < 0.35:
        kind = draw.choice(("or", "and", "heads"))
        parts = [pattern_of(draw, length, heads, 1) for _ in range(heads if kind == "heads" else 2)]
        if kind == "heads":
            one = [part for part in parts if part.head_count is None]
            return patterns.PerHead(one) if len(one) == heads else parts[0]
        return parts[0] | parts[1] if kind == "or" else parts[0] & parts[1]
    if depth == 0 and draw.random() < 0.05:
        step = draw.randint(2, 9)
        return patterns.Predicate(lambda b, h, i, j: (i * 7 + j * 3 + h) % step == 0)
    return draw.choice(families)()


def spread(draw: random.Random, shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator, device: str) -> Tensor:
    """Normal numbers [B, H, T, D] with one of the strides that projections leave."""
    B, H, T, D = shape
    kind = draw.choice(("heads first", "tokens first", "packed"))
    if kind == "tokens first":
        x = torch.randn(B, T, H, D, generator=g).to(device, dtype).transpose(1, 2)
    elif kind == "packed":
        x = torch.randn(B, T, H, 3 * D, generator=g).to(device, dtype).transpose(1, 2)[..., D : 2 * D]
    else:
        x = torch.randn(shape, generator=g).to(device, dtype)
    return x.detach().requires_grad_()


def device_layout(draw: random.Random, g: torch.Generator, B: int, H: int, q_len: int, k_len: int, device: str) -> Any:
    from longspan_kernels.block_sparse import DeviceLayout

    block_q, block_k = draw.choice(((16, 16), (32, 32), (32, 16), (64, 64)))
    shape = (draw.choice((1, B)), draw.choice((1, H)))

    def order(length: int, block: int) -> Tensor | None:
        places = -(-(length + 5) // block) * block
        out = torch.full((*shape, places), -1)
        for b in range(shape[0]):
            for h in range(shape[1]):
                at = torch.randperm(places, generator=g)[:length].sort().values
                out[b, h, at] = torch.randperm(length, generator=g)
        return out.to(device)

    ordered = draw.random() < 0.4
    q_order, k_order = (order(q_len, block_q), order(k_len, block_k)) if ordered else (None, None)
    rows = -(-q_len // block_q) if q_order is None else q_order.shape[2] // block_q
    columns = -(-k_len // block_k) if k_order is None else k_order.shape[2] // block_k
    lists = shape[0] * shape[1] * rows
    index = torch.stack([torch.randperm(columns, generator=g) for _ in range(lists)]).view(*shape, rows, columns)
    index = index[..., : max(1, columns // 2)]
    count = torch.randint(0, index.shape[3] + 1, (*shape, rows), generator=g)
    excluded = None
    if q_len == k_len and draw.random() < 0.4:
        excluded = (2 * torch.randperm(q_len, generator=g))[None, None].expand(draw.choice((1, B)), 1, -1).int().to(device)
    return DeviceLayout(
        index.to(device), count.to(device), block_q, block_k, q_len, k_len, draw.random() < 0.5, q_order, k_order, excluded
    )


def attention_call(draw: random.Random, g: torch.Generator, device: str) -> tuple[str, dict[str, Tensor]]:
    from longspan import sparse_attention

    on_gpu = device == "cuda"
    backend = "triton" if on_gpu else draw.choice(CPU_BACKENDS)
    H, share = draw.choice(((2, 1), (4, 2), (4, 1), (1, 1)))
    B = draw.choice((1, 1, 2, 3))
    most = 150 if backend == "triton" else 260  # Triton's interpreter is slow
    k_len = draw.choice((64, 512, 1000, 2048, 4096, 6000) if on_gpu else (draw.randint(1, 60), 128, draw.randint(61, most)))
    q_len = k_len if draw.random() < 0.75 else draw.randint(1, k_len)
    D = draw.choice((64, 64, 64, 128, 40) if on_gpu else (16, 16, 64, 40))
    dtypes = [torch.bfloat16] * 4 + [torch.float16, torch.float32] if on_gpu else [torch.float32, torch.float16]
    if not on_gpu and backend != "triton":
        dtypes += [torch.bfloat16, torch.float64]
    dtype = draw.choice(dtypes)
    q = spread(draw, (B, H, q_len, D), dtype, g, device)
    k, v = (spread(draw, (B, H // share, k_len, D), dtype, g, device) for _ in range(2))
    options: dict[str, Any] = {"backend": backend, "return_lse": True}
    leaves = {"q": q, "k": k, "v": v}
    if draw.random() < 0.2 and backend != "dense":
        pattern: Any = device_layout(draw, g, B, H, q_len, k_len, device)
        name = f"DeviceLayout({pattern.block_q}, {pattern.block_k}, causal={pattern.causal}, {pattern.q_order is not None})"
    else:
        pattern = pattern_of(draw, k_len, H)
        options["causal"] = draw.random() < 0.5
        name = f"{pattern} causal={options['causal']}"
        if "BigBird" in name and "|" not in name and "&" not in name and "PerHead" not in name and draw.random() < 0.4:
            size = pattern.block_size
            first = (k_len - q_len) // size
            shape = (draw.choice((1, H)), (k_len - 1) // size - first + 1, (k_len - 1) // size + 1)
            if q_len == k_len and size % 16 == 0:
                options["block_bias"] = torch.randn(shape, generator=g).to(device).requires_grad_()
                leaves["bias"] = options["block_bias"]
    if draw.random() < 0.3:
        options["lengths"] = tuple(torch.randint(0, n + 1, (B,), generator=g).to(device) for n in (q_len, k_len))
    if draw.random() < 0.25:
        options["segments"] = tuple(torch.randint(0, 3, (B, n), generator=g).to(device) for n in (q_len, k_len))
    if draw.random() < 0.25:
        options["dropout_p"] = 0.2
    if draw.random() < 0.2:
        options["scale"] = draw.choice((0.3, -0.2))
    with_lse = draw.random() < 0.4
    torch.manual_seed(draw.randrange(1 << 30))
    name = f"{backend} {name} B={B} H={H}/{H // share} T={q_len},{k_len} D={D} {dtype} {sorted(options)}"
    out, lse = sparse_attention(q, k, v, pattern, **options)
    wanted, gradients = [out], [torch.randn(out.shape, generator=g).to(device, dtype)]
    if with_lse:
        wanted.append(lse.masked_fill(lse == float("-inf"), 0.0))
        gradients.append(torch.randn(lse.shape, generator=g).to(device, lse.dtype))
    found = torch.autograd.grad(wanted, list(leaves.values()), gradients)
    return name, {"out": out, "lse": lse} | {f"d{leaf}": x for leaf, x in zip(leaves, found, strict=True)}


def choice_call(draw: random.Random, g: torch.Generator, device: str) -> tuple[str, dict[str, Tensor]]:
    from longspan_kernels.selected import choose_blocks, choose_scored_blocks

    backend = "triton" if device == "cuda" else draw.choice(("triton", "auto"))
    size, length = draw.choice((16, 32, 64)), draw.randint(20, 3000 if device == "cuda" else 200)
    B, H, share, D, causal = draw.choice((1, 2)), 4, draw.choice((1, 2)), draw.choice((16, 40, 64)), draw.random() < 0.6
    lengths = torch.randint(0, length + 1, (B,), generator=g).to(device) if draw.random() < 0.4 else None
    picks, blocks = draw.randint(1, 5), -(-length // size)
    name = f"{backend} choose {picks} of {blocks} blocks of {size} T={length} D={D} share={share} causal={causal}"
    options: dict[str, Any] = {"causal": causal, "lengths": lengths, "backend": backend}
    q = torch.randn(B, H, length, D, generator=g).to(device)
    means = torch.randn(B, H // share, blocks, D, generator=g).to(device)
    scores = torch.randn(B, H, length, blocks, generator=g).to(device)
    return name, {
        "by_means": choose_blocks(q, means, picks, size, **options).sort(-1).values,
        "by_scores": choose_scored_blocks(scores, picks, size, length, **options).sort(-1).values,
    }


def results(calls: int, device: str, only: set[int] | None = None) -> Iterator[dict[str, Any]]:
    """One entry a call: its number and name, and for each tensor a hash, its sum of squares and whether all of it is finite."""
    for number in range(calls):
        if only is not None and number not in only:
            continue
        draw = random.Random(f"call {number}")
        g = torch.Generator().manual_seed(number)
        began = time.perf_counter()
        made = choice_call if number % 12 == 11 else attention_call
        name = "?"
        try:
            name, found = made(draw, g, device)
        except (ValueError, RuntimeError) as error:  # refusals are results too
            yield {"call": number, "name": f"{name} {type(error).__name__}", "error": str(error)[:200]}
            continue
        entry: dict[str, Any] = {"call": number, "name": name, "seconds": round(time.perf_counter() - began, 2)}
        for key, x in found.items():
            shape = str(list(x.shape))
            x = x.detach().cpu().reshape(-1).clone()
            digest = hashlib.sha256(x.view(torch.uint8).numpy().tobytes()).hexdigest()[:20]
            finite = x.double()[torch.isfinite(x.double())]
            entry[key] = [digest, float((finite * finite).sum()), len(finite), shape]
        yield entry


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two entries of one call, a line each."""
    if "error" in old or "error" in new:
        return [] if old.get("error") == new.get("error") else [f"error {old.get('error')} -> {new.get('error')}"]
    found = []
    for key in old.keys() | new.keys():
        if key not in ("call", "name", "seconds") and old.get(key) != new.get(key):
            a, b = old.get(key, [None] * 4), new.get(key, [None] * 4)
            found.append(f"{key}: sum of squares {a[1]} -> {b[1]}, finite {a[2]} -> {b[2]}, shape {a[3]} -> {b[3]}")
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--every", type=int, default=1, help="each N-th call alone")
    parser.add_argument("--first", type=int, default=0, help="from this one on")
    given = parser.parse_args()
    if given.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        torch.set_num_threads(1)
    chosen = set(range(given.first, given.calls, given.every))
    if given.save is not None:
        entries = list(results(given.calls, given.device, chosen))
        given.save.write_text(json.dumps(entries))
        refused = sum("error" in entry for entry in entries)
        print(f"{len(entries)} calls saved, {refused} of them refused")
        return 0
    if given.against is None:
        parser.error("give --save FILE or --against FILE")
    known = {entry["call"]: entry for entry in json.loads(given.against.read_text())}
    differing, compared = 0, 0
    for new in results(given.calls, given.device, chosen):
        compared += 1
        lines = difference(known[new["call"]], new)
        if lines:
            differing += 1
            print(f"call {new['call']}: {known[new['call']]['name']}", *lines, sep="\n    ", flush=True)
    print(f"{compared} calls compared, {differing} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())

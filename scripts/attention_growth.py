"""How the time of attention variants grows with the length: forward and backward, one layer.

python scripts/attention_growth.py reformer full local:window=128 --lengths 1024 2048 4096 8192
python scripts/attention_growth.py reformer moba nsa --lengths 16384 32768 65536 --device cuda -o benchmarks/growth.json
"""

from __future__ import annotations

import argparse
import sys

import torch
from rich.console import Console
from rich.table import Table

from longspan.attention import AttentionConfigError
from longspan.benchmark.growth import GrowthError, measure
from longspan.benchmark.results import result, save


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", metavar="NAME[:KEY=VALUE,...]")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192], metavar="T")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--both-ways", action="store_true", help="not causal")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="time to spend on each figure (default: 1)")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON with hardware, versions, command and every figure")
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    try:
        rows = measure(
            args.variants, args.lengths, device=args.device, heads=args.heads, head_dim=args.head_dim,
            causal=not args.both_ways, dtype=dtype, seconds=args.seconds,
        )  # fmt: skip
    except (GrowthError, AttentionConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.output:
        save(args.output, result(" ".join(["python", *sys.argv]), args.device, rows, threads=torch.get_num_threads()))
    table = Table(title="forward + backward, medians", title_justify="left")
    for heading in ("variant", "T", "ms", "grows as T^", "stated FLOPs as T^", "peak MiB"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in sorted(rows, key=lambda row: (args.variants.index(row["variant"]), row["T"])):
        grown = [f"{row[key]:.2f}" if key in row else "" for key in ("exponent", "flops_exponent")]
        table.add_row(row["variant"], f"{row['T']:,}", f"{row['ms']:.2f}", *grown, f"{row['peak_mib']:,.0f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

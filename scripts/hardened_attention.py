"""Learned patterns, once hardened, beside a window of equal density: forward, and forward + backward.

python scripts/hardened_attention.py reports/learned_needle/records -o benchmarks/hardened.json
python scripts/hardened_attention.py reports/learned_needle/records --length 2048 --device cpu --heads 2 --head-dim 32

A run of shorter sequences is measured in its own blocks, at the same distances, and in blocks that are stretched with the
sequences, at the same density; beside them stand gates drawn at random, which no training would leave so scattered.
"""

from __future__ import annotations

import argparse
import sys

import torch
from rich.console import Console
from rich.table import Table

from longspan.benchmark.hardened import Learned, at_random, measure, of_record
from longspan.benchmark.results import result, save
from longspan.config.errors import BenchmarkError, ConfigError, RecordError
from longspan.records.environment import command_line
from longspan.report.collect import collect


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="records of attention=learned, or folders searched for them")
    parser.add_argument("--length", type=int, default=16384, metavar="T")
    parser.add_argument("--heads", type=int, default=16, help="the heads of each layer are repeated up to them (default: 16)")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--densities", type=float, nargs="*", default=[0.05, 0.1, 0.15], help="of the gates drawn at random")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0.3, help="time to spend on each figure (default: 0.3)")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON with hardware, versions, command and every figure")
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[Learned]:
    found: list[Learned] = []
    for run in collect(args.runs).complete if args.runs else []:
        if run.record.variant_name != "learned":
            continue
        name = run.path.parent.name
        stretches = [True, False] if int(run.record.config["data"]["max_length"]) != args.length else [False]
        for stretch in stretches:
            words = name if len(stretches) == 1 else f"{name}, {'stretched' if stretch else 'as it is'}"
            found.append(of_record(run.record, args.length, words, stretch))
    return found + [at_random(args.length, args.heads, density) for density in args.densities]


def main() -> int:
    args = arguments()
    command = command_line()

    def keep(rows: list[dict]) -> None:  # after each, so that an interrupt loses nothing
        if args.output:
            save(args.output, result(command, args.device, rows, threads=torch.get_num_threads()))

    try:
        rows = measure(
            chosen(args),
            device=args.device,
            heads=args.heads,
            head_dim=args.head_dim,
            batch=args.batch,
            dtype=torch.bfloat16 if args.device.startswith("cuda") else torch.float32,
            seconds=args.seconds,
            keep=keep,
        )
    except (BenchmarkError, ConfigError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table(title=f"T={args.length:,}: ms a layer, medians; times the window's time", title_justify="left")
    for heading in ("learned", "density", "fwd", "local fwd", "times", "fwd+bwd", "local", "times"):
        table.add_column(heading, justify="left" if heading == "learned" else "right", no_wrap=heading == "learned")
    for row in rows:
        *layers, local = row["sides"].values()
        figures = []
        for kind in ("forward", "both"):
            ours = sum(layer[kind]["ms"] for layer in layers) / len(layers)
            figures += [f"{ours:.3f}", f"{local[kind]['ms']:.3f}", f"{row[f'ratio_{kind}']:.2f}"]
        table.add_row(row["learned"], f"{row['density']:.3f}", *figures)
    Console(width=max(110, Console().width)).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

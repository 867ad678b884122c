"""Longspan's attention timed: variants over lengths, and patterns beside their peers, in one run.

python scripts/benchmark.py --attention full local:window=256 bigbird --lengths 2048 4096 8192 16384 -o benchmarks/scaling.json
python scripts/benchmark.py --suite cpu -o benchmarks/cpu.json
python scripts/benchmark.py --suite gpu -o benchmarks/h100.json
python scripts/benchmark.py --suite end-to-end -o benchmarks/end_to_end.json
python scripts/benchmark.py --suite cpu-choice --threads 2 -o benchmarks/cpu_choice.json    # what backend="auto" goes by
python scripts/benchmark.py --suite decode -o benchmarks/decode.json     # a token's time and cache against its position
python scripts/benchmark.py --suite content -o benchmarks/content.json   # NSA, MoBA, DSA, Reformer, ... beside dense
python scripts/benchmark.py --suite padded -o benchmarks/padded.json     # batches of sequences of different lengths
python scripts/benchmark.py --suite first-call -o benchmarks/h100_first_call.json
python scripts/benchmark.py --suite encoding --device cpu -o benchmarks/cpu_encoding.json  # bases a second, by one core
python scripts/benchmark.py --suite loader --lengths 1048576 -o benchmarks/loader.json  # do steps wait for windows of a genome?
python scripts/benchmark.py --tune -o tuned.json        # the table of kernels/longspan_kernels/block_sparse/triton/configs.py
python scripts/benchmark.py --pattern "Local(256) | Strided(128)" --lengths 4096 16384 --heads 8 --head-dim 64 --peer sdpa
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from longspan.benchmark import content, cpu_choice, decode, first_call, layouts, linear, padded
from longspan.benchmark.cases import Case
from longspan.benchmark.compare import compare
from longspan.benchmark.compile_first import compile_first
from longspan.benchmark.end_to_end import Size, compare_steps
from longspan.benchmark.growth import measure
from longspan.benchmark.peers import find
from longspan.benchmark.results import result, save, show, show_growth
from longspan.benchmark.suites import SUITES, Plan, suite
from longspan.config.errors import BenchmarkError, CallError, ConfigError
from longspan.patterns import PatternError, parse_pattern
from longspan.records.environment import command_line
from longspan.report.build import draw_scaling
from longspan.report.scaling import from_rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--suite",
        choices=[
            *SUITES,
            "content",
            "converted",
            "cpu-choice",
            "decode",
            "linear",
            "end-to-end",
            "layouts",
            "first-call",
            "encoding",
            "loader",
            "padded",
        ],
        help="a published comparison, instead of --pattern",
    )
    parser.add_argument("--tune", action="store_true", help="search how kernels are best launched on this GPU")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="compile all that will be timed first, in N processes (default: 1)"
    )
    parser.add_argument(
        "--attention",
        nargs="+",
        default=[],
        metavar="NAME[:KEY=VALUE,...]",
        help="attention variants, one layer each, over --lengths; with -o FILE.json the picture is FILE.png",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="cases of the suite whose name holds one of these"
    )
    parser.add_argument(
        "--pattern", action="append", default=[], metavar="EXPR", help="a pattern, such as 'BigBird(64, 3, 3, 2)'"
    )
    parser.add_argument("--lengths", type=count, nargs="+", default=[8192], metavar="T")
    parser.add_argument("--heads", type=count, default=8)
    parser.add_argument("--head-dim", type=count, default=64)
    parser.add_argument("--batch", type=count, default=1)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: bfloat16 on CUDA, float32 on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME", help="sdpa, flex, sdpa-cudnn, ... or package.module:function"
    )
    parser.add_argument("--alone", action="store_true", help="time a suite's cases without their peers")
    parser.add_argument("--seconds", type=float, default=1.0, help="time to spend on each side of a case (default: 1)")
    parser.add_argument(
        "--compile",
        nargs="?",
        const=True,
        default=False,
        metavar="MODE",
        help="end-to-end and content: compile Longspan's side",
    )
    parser.add_argument(
        "--workers",
        type=count_or_zero,
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
        help="loader: processes (default: 0 1 2)",
    )
    parser.add_argument("--bases", type=count, default=64_000_000, metavar="N", help="loader: of its genome (default: 64e6)")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="loader: training steps timed (default: 20)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON with hardware, versions, command and every figure")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch {torch.__version__} sees no GPU here; give --device cpu")
    return args


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 1 or more")
    return int(text)


def count_or_zero(text: str) -> int:
    return 0 if text == "0" else count(text)


def plans(args: argparse.Namespace) -> list[Plan]:
    if args.suite:
        chosen = suite(args.suite)
        names = named_by(args.only, [p.case.name for p in chosen])
        chosen = [p for p in chosen if p.case.name in names]
        return [replace(p, sides=("longspan",) if args.alone else (*p.sides, *args.peer)) for p in chosen]
    if not args.pattern:
        raise BenchmarkError("nothing to time; give --attention, --suite or --pattern")
    dtype = DTYPES[args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32")]
    return [
        Plan(
            Case(text, parse_pattern(text), args.causal, length, args.heads, args.head_dim, args.batch, dtype),
            ("longspan", *(args.peer or ["sdpa"])),
        )
        for text in args.pattern
        for length in args.lengths
    ]


def end_to_end(args: argparse.Namespace) -> int:
    """The training step of base size beside transformers' BigBird."""
    size = Size(batch=args.batch if args.batch > 1 else 4, length=args.lengths[0] if args.lengths != [8192] else 4096)
    row = compare_steps(size, args.device, args.seconds, args.compile)
    return keep(args, [row])


def first_calls(args: argparse.Namespace) -> int:
    """What the first call of a pattern waits for, and what another length does."""
    if not args.device.startswith("cuda"):
        print("error: --suite first-call times how kernels are compiled; it needs a CUDA device", file=sys.stderr)
        return 2
    return keep_each(args, first_call.measure(args.device), str)


def linear_attentions(args: argparse.Namespace) -> int:
    """Linear attention and the gated delta rule beside flash-linear-attention."""
    on_gpu = args.device.startswith("cuda")
    lengths = args.lengths if args.lengths != [8192] else [16384, 65536, 1 << 20] if on_gpu else [4096, 8192, 65536]
    return keep_each(args, linear.measure(lengths, args.device, args.seconds, named_by(args.only, linear.OPS)), linear.line)


def chosen_by_content(args: argparse.Namespace) -> int:
    """Variants that choose by content beside dense attention."""
    lengths = args.lengths if args.lengths != [8192] else [16384, 65536] if args.device.startswith("cuda") else [16384]
    names = named_by(args.only, [case.name for case in content.CASES])
    return keep_each(args, content.measure(lengths, args.device, args.seconds, names, args.compile), content.line)


def padded_batches(args: argparse.Namespace) -> int:
    """Batches of sequences of different lengths beside batches of one length."""
    names = named_by(args.only, list(padded.CASES))
    return keep_each(args, padded.measure(args.lengths, args.device, args.seconds, names), padded.line)


def decoding(args: argparse.Namespace) -> int:
    """Time a token and cache bytes against the position."""
    found: list[dict] = []
    dtype = DTYPES[args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32")]

    def keep_row(row: dict) -> None:
        found.append(row)
        print(f"{row['variant']} at {row['position']:,}: {row['ms']:.3f} ms, {row['cache_bytes']:,} bytes", flush=True)
        if args.output:  # after each, so that an interrupt loses nothing
            save(args.output, result(command_line(), args.device, found, threads=torch.get_num_threads()))

    decode.measure(
        decode.available(args.attention),
        args.lengths if args.lengths != [8192] else decode.POSITIONS,
        device=args.device,
        heads=args.heads,
        head_dim=args.head_dim,
        batch=args.batch,
        dtype=dtype,
        each=keep_row,
    )
    if args.output:
        print(decode.draw(found, Path(args.output).with_suffix(".png")))
    return 0


def loaders(args: argparse.Namespace) -> int:
    """A genome's loader beside training steps."""
    from longspan.benchmark import loader  # loads Lightning

    found: list[dict] = []
    on_gpu = args.device.startswith("cuda")
    size = loader.Size(batch=args.batch, steps=args.steps)

    def keep_row(row: dict) -> None:
        found.append(row)
        print(loader.line(row), file=sys.stderr, flush=True)
        if args.output:  # after each, so that an interrupt loses nothing
            settings = {"threads": torch.get_num_threads(), "model": asdict(size)}
            save(args.output, result(command_line(), args.device, found, **settings))

    loader.measure(
        args.attention or loader.ATTENTION,
        args.lengths if args.lengths != [8192] else [1 << 20] if on_gpu else [1 << 14],
        args.workers,
        device=args.device,
        bases=args.bases,
        size=size,
        each=keep_row,
    )
    return 0


def tune(args: argparse.Namespace) -> int:
    """Every candidate launch of every kernel, and the table of the best."""
    from longspan.benchmark import tune as tuning

    if not args.device.startswith("cuda"):
        print("error: --tune times compiled kernels; it needs a CUDA device", file=sys.stderr)
        return 2
    chosen = [p for p in tuning.problems() if not args.only or any(text in f"{p.kernel} {p.lines}" for text in args.only)]
    rows: list[dict] = []
    for row in tuning.tune(args.device, args.jobs, args.seconds, chosen):
        rows.append(row)
        if args.output:  # after each, so that an interrupt loses nothing
            save(args.output, result(command_line(), args.device, rows))
    print(tuning.table(rows))
    return 0


def variants(args: argparse.Namespace) -> int:
    """How time and memory of attention variants grow with the length."""
    dtype = DTYPES[args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32")]
    content: dict = {}

    def save_so_far(rows: list[dict]) -> None:  # after each length, so that an interrupt loses nothing
        command = command_line()
        content.update(result(command, args.device, rows, threads=torch.get_num_threads()))
        if args.output:
            save(args.output, content)

    try:
        rows = measure(
            args.attention,
            args.lengths,
            device=args.device,
            heads=args.heads,
            head_dim=args.head_dim,
            causal=args.causal,
            batch=args.batch,
            dtype=dtype,
            seconds=args.seconds,
            each=save_so_far,
        )
    except (BenchmarkError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show_growth(from_rows(rows, content))
    if args.output and (picture := draw_scaling(Path(args.output), Path(args.output).with_suffix(".png"))):
        print(f"{args.output}\n{picture}")
    return 0


def keep_each(args: argparse.Namespace, rows: Iterable[dict], line: Callable[[dict], str]) -> int:
    """Says and saves each row when it is there, so that an interrupt loses nothing."""
    found: list[dict] = []
    for row in rows:
        found.append(row)
        print(line(row), file=sys.stderr, flush=True)
        if args.output:
            save(args.output, result(command_line(), args.device, found))
    return 0 if args.output else keep(args, found)


def keep(args: argparse.Namespace, found: list[dict]) -> int:
    if args.output:
        save(args.output, result(command_line(), args.device, found))
    print(json.dumps(found, indent=1))
    return 0


def named_by(only: list[str], names: Sequence[str]) -> list[str]:
    """The cases whose names hold one of `only`; all where it is empty."""
    names = list(dict.fromkeys(names))
    chosen = [name for name in names if not only or any(text in name for text in only)]
    if not chosen:
        raise BenchmarkError(f"--only {' '.join(only)} names no case; choose among {', '.join(names)}")
    return chosen


def main() -> int:
    try:
        return run(arguments())
    except (BenchmarkError, PatternError, ConfigError, CallError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """What the arguments ask for."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.suite == "decode":
        return decoding(args)
    if args.suite == "loader":
        return loaders(args)
    if args.attention:
        return variants(args)
    if args.suite == "end-to-end":
        return end_to_end(args)
    if args.tune:
        return tune(args)
    if args.suite == "first-call":
        return first_calls(args)
    if args.suite == "converted":
        from longspan.benchmark.converted import compare_converted  # loads transformers

        return keep(args, compare_converted(args.lengths[0] if args.lengths != [8192] else 16384, args.device, args.seconds))
    if args.suite == "linear":
        return linear_attentions(args)
    if args.suite == "content":
        return chosen_by_content(args)
    if args.suite == "padded":
        return padded_batches(args)
    if args.suite == "encoding":
        from longspan.benchmark import encoding  # loads Lightning

        return keep(args, encoding.measure())
    if args.suite == "cpu-choice":
        timed, fitted = cpu_choice.run(Console(stderr=True))
        save(args.output or "cpu_choice.json", result(command_line(), "cpu", timed, **fitted))
        return 0
    if args.suite == "layouts":
        return keep(args, layouts.measure(args.device))
    rows: list[dict] = []
    try:
        chosen = plans(args)
        for name in args.peer:
            find(name)
        if args.jobs > 1:
            compile_first(chosen, args.device, args.jobs)
        for number, plan in enumerate(chosen, 1):
            print(
                f"[{number}/{len(chosen)}] {plan.case.name}, T={plan.case.length:,}: {', '.join(plan.sides)}",
                file=sys.stderr,
                flush=True,
            )
            rows.append(compare(plan.case, plan.sides, args.device, args.seconds, heated=plan.heated))
            if args.output:  # after each case, so that an interrupt loses nothing
                save(args.output, result(command_line(), args.device, rows, threads=torch.get_num_threads()))
    except KeyboardInterrupt:
        print("interrupted; the cases before are kept", file=sys.stderr)
    show(rows)
    if args.output and (picture := draw_scaling(Path(args.output), Path(args.output).with_suffix(".png"))):
        print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Tables and pictures of accuracy against cost, from the records of any runs.

longspan-report outputs multirun -o reports/mine
longspan-report multirun/2026-01-31 -o reports/mine --cost time
longspan-report multirun/ablation benchmarks/scaling.json -o reports/mine   # and what scripts/benchmark.py measured
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from longspan.config.errors import ConfigError, RecordError
from longspan.report.build import write_report
from longspan.report.tables import COST_AXES


def main(arguments: Sequence[str] | None = None, program: str = "longspan-report") -> int:
    """Writes a report; returns the exit code.

    Args:
        arguments: the words of the command line; None takes those that were typed.
        program: what was typed before them.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=(__doc__ or "").replace("longspan-report", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="record files, folders searched for record.json, and results of scripts/benchmark.py",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write the report to")
    parser.add_argument("--cost", default="flops", choices=list(COST_AXES), help="cost axis of the pictures (default: flops)")
    parser.add_argument(
        "--reference", default="full", help="variant, or label in the tables, that others are compared with (default: full)"
    )
    parser.add_argument("--title", default="Accuracy against cost", help="title of the report")
    parser.add_argument(
        "--note",
        action="append",
        default=[],
        metavar="TEXT",
        help="a sentence under the title, such as what a reader must know of how the runs were made; may be given again",
    )
    parser.add_argument("--records", action="store_true", help="copy the records to DIR/records, to make the report from again")
    parser.add_argument(
        "--wandb", metavar="PROJECT", help="log table, scatter and pictures to W&B too (WANDB_MODE=offline: kept)"
    )
    given = parser.parse_args(arguments)
    try:
        page = write_report(
            given.runs,
            given.output,
            cost=given.cost,
            reference=given.reference,
            title=given.title,
            remarks=given.note,
            wandb_project=given.wandb,
            keep_records=given.records,
        )
    except (RecordError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{page}\n{page.with_suffix('.md')}")
    return 0

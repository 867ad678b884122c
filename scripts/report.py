"""Tables and pictures of accuracy against cost, from the records of any runs.

python scripts/report.py outputs multirun -o reports/mine
python scripts/report.py multirun/2026-01-31 -o reports/mine --cost time
python scripts/report.py multirun/ablation benchmarks/scaling.json -o reports/mine   # and what scripts/benchmark.py measured
"""

from __future__ import annotations

import argparse
import sys

from longspan.config.errors import ConfigError, RecordError
from longspan.report.build import write_report
from longspan.report.tables import COST_AXES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    arguments = parser.parse_args()
    try:
        page = write_report(
            arguments.runs,
            arguments.output,
            cost=arguments.cost,
            reference=arguments.reference,
            title=arguments.title,
            remarks=arguments.note,
            wandb_project=arguments.wandb,
            keep_records=arguments.records,
        )
    except (RecordError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{page}\n{page.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A picture of accuracy against distance, a line an attention, from the records of diagnostic runs.

python scripts/sweep.py sweep=needle_distance trainer=gpu
python scripts/accuracy_by_distance.py multirun/needle_distance -o reports/needle_distance/accuracy-distance.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from longspan.report.collect import NoRecordsError, collect
from longspan.report.distances import accuracy_against_distance, reaches
from longspan.report.groups import sections


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="record files, or folders searched for record.json")
    parser.add_argument(
        "-o", "--output", required=True, metavar="PNG", help="picture to write; a number is added for each more task"
    )
    arguments = parser.parse_args()
    output, drawn = Path(arguments.output), 0
    try:
        found, _ = sections(collect(arguments.runs))
    except NoRecordsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for section in found:
        path = output if not drawn else output.with_stem(f"{output.stem}-{drawn + 1}")
        if accuracy_against_distance(section, path):
            drawn += 1
            print(path)
            for reach in reaches(section):
                shares = ", ".join(f"{distance:g}: {summary.mean:.4f}" for distance, summary in reach.points)
                print(f"  {reach.label}, n={reach.points[0][1].n}: {shares}")
    if not drawn:
        print(
            "error: no complete run tells accuracy at two distances; data=needle data.distances=[64,256] does", file=sys.stderr
        )
    return 0 if drawn else 2


if __name__ == "__main__":
    sys.exit(main())

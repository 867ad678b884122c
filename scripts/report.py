"""Tables and pictures of accuracy against cost, from the records of any runs.

python scripts/report.py outputs multirun -o reports/mine
python scripts/report.py multirun/2026-01-31 -o reports/mine --cost time
python scripts/report.py multirun/ablation benchmarks/scaling.json -o reports/mine   # and what scripts/benchmark.py measured
"""

from __future__ import annotations

import sys

from longspan.report.command import main

if __name__ == "__main__":
    sys.exit(main(program="python scripts/report.py"))

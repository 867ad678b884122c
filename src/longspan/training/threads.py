"""How CPU threads wait for each other; to be decided before torch is loaded."""

from __future__ import annotations

import os


def patient_threads() -> None:
    """Lets OpenMP threads sleep instead of spin while they wait.

    On a machine with other work, spinning threads hold the cores that the thread they wait for needs: a step of the demo
    beside two busy processes took over 70 s with spinning and 0.4 s without. A setting of the user's own stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")

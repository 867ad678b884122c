"""Sets how CPU threads wait for each other, which must happen before torch is loaded."""

from __future__ import annotations

import os


def patient_threads() -> None:
    """Lets OpenMP threads sleep instead of spin while they wait.

    On a machine with other work, spinning threads hold the cores that the thread they wait for needs. BigBird attention of
    [8, 4, 1024, 32] beside other processes on 2 cores, forward and backward: between 1.5 and 50 s a call with spinning,
    about 0.27 s without. A setting of the user's own stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")

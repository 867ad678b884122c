"""Runs a script with FSDP told that its device is the CPU, which it cannot find out where there is no accelerator.

python tests/shared/fsdp_on_cpu.py train.py trainer=fsdp trainer.accelerator=cpu
"""

from __future__ import annotations

import os
import runpy
import sys

import torch
from torch.distributed.fsdp import FullyShardedDataParallel

build = FullyShardedDataParallel.__init__


def build_on_cpu(self, *arguments, **settings):
    build(self, *arguments, **{**settings, "device_id": torch.device("cpu")})


FullyShardedDataParallel.__init__ = build_on_cpu  # type: ignore[method-assign]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
# Threads that FSDP leaves on a CPU abort one orderly exit in three.
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)

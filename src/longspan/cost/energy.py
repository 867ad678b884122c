"""Energy that a GPU has used, from the counter that NVML keeps. None where there is no such counter."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


class EnergyMeter:
    """Joules between :meth:`start` and :meth:`stop`, added up over as many spans as are taken.

    Needs ``nvidia-ml-py`` (the ``gpu`` extra) and a GPU of Volta or later; elsewhere `joules` stays None. The counter
    moves about ten times a second, so a span of a single short step says little.

    Args:
        device: a ``torch.device``; any that is not CUDA has no counter.
    """

    def __init__(self, device: Any = None) -> None:
        self.joules: float | None = None
        self._begun: int | None = None
        self._handle: Any = None
        self._nvml: Any = None
        if getattr(device, "type", None) == "cuda":
            self._open(device)

    def _open(self, device: Any) -> None:
        try:
            import pynvml
            import torch

            pynvml.nvmlInit()
            # by UUID, since NVML counts the GPUs that CUDA_VISIBLE_DEVICES hides
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            self._nvml = pynvml
        except ImportError:
            log.info("No energy figure: install nvidia-ml-py (pip install 'longspan[gpu]')")
        except Exception as error:  # NVML has one error class, reachable only where it could be imported
            log.info("No energy figure: NVML says %s", error)

    def start(self) -> None:
        self._begun = self._millijoules()

    def stop(self) -> None:
        """Ends the span; without one it does nothing."""
        now = self._millijoules()
        if now is not None and self._begun is not None:
            self.joules = (self.joules or 0.0) + (now - self._begun) / 1000
        self._begun = None

    def _millijoules(self) -> int | None:
        if self._nvml is None:
            return None
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError:
            return None

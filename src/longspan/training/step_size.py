"""The same step on any number of devices: tokens a step, shared out.

Three sizes, by name: *sequences a device* (`data.batch_size`, at most so many at once), *sequences a step* (over all
devices and accumulated batches) and *tokens a step* (`tokens_per_step`: sequences a step times `data.max_length`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from longspan.config.checks import check_tokens
from longspan.config.errors import wrong_value
from longspan.values import is_whole


@dataclass(frozen=True)
class StepSize:
    """What one optimizer step is made of."""

    devices: int
    sequences_per_device: int
    accumulated_batches: int
    max_length: int

    @property
    def sequences_per_batch(self) -> int:
        """On all devices together, before accumulation."""
        return self.devices * self.sequences_per_device

    @property
    def sequences_per_step(self) -> int:
        return self.sequences_per_batch * self.accumulated_batches

    @property
    def tokens_per_step(self) -> int:
        """Padding counted."""
        return self.sequences_per_step * self.max_length

    def as_dict(self) -> dict[str, int]:
        """Plain, for the run record."""
        return {
            **asdict(self),
            "sequences_per_step": self.sequences_per_step,
            "tokens_per_step": self.tokens_per_step,
        }


def step_size(config: Mapping[str, Any]) -> StepSize:
    """The step of a config: as it says, or with `tokens_per_step` what comes to as many tokens on the devices at hand.

    Then `data.batch_size` is the most sequences a device takes at once, and batches are accumulated where that is less
    than its share.

    Raises:
        ConfigError: `tokens_per_step` is not whole sequences for every device.
    """
    devices = device_count(config["trainer"])
    at_once, length = int(config["data"]["batch_size"]), int(config["data"]["max_length"])
    accumulated = int(config["trainer"].get("accumulate_grad_batches") or 1)
    tokens = config.get("tokens_per_step")
    if tokens is None:
        return StepSize(devices, at_once, accumulated, length)
    check_tokens(tokens, devices, length, accumulated)
    sequences = tokens // (devices * length)
    accumulated = next(count for count in range(1, sequences + 1) if sequences % count == 0 and sequences // count <= at_once)
    return StepSize(devices, sequences // accumulated, accumulated, length)


def sized(config: Mapping[str, Any], size: StepSize) -> dict[str, Any]:
    """The config with the step's sizes in it. Intervals that Lightning counts in batches still are so many steps, and a run
    that is shorter than `trainer.val_check_interval` is validated at its end: without that it has no best checkpoint."""
    own = copy.deepcopy(dict(config))
    trainer = own["trainer"]
    if config.get("tokens_per_step") is not None:
        own["data"]["batch_size"] = size.sequences_per_device
        trainer["accumulate_grad_batches"] = size.accumulated_batches
        for key in ("val_check_interval", "limit_train_batches"):
            if _is_count(trainer.get(key)):
                trainer[key] *= size.accumulated_batches
    every, steps = trainer.get("val_check_interval"), trainer.get("max_steps")
    if _is_count(every) and _is_count(steps) and steps > 0 and trainer.get("check_val_every_n_epoch") is None:
        trainer["val_check_interval"] = min(every, steps * size.accumulated_batches)
    return own


def check_memory(config: Mapping[str, Any], size: StepSize) -> None:
    """Refuses batches padded to a `data.max_length` of which not even one layer's tokens fit the device: such a number is a
    slip, and counting its pairs alone takes minutes.

    Raises:
        ConfigError: a device's batch at `model.width` is larger than its memory.
    """
    data, width = config["data"], config["model"].get("width")
    if not is_whole(width, 1) or data.get("pad_to_multiple") is not None:  # then batches are as long as their longest sequence
        return
    each = 2 if "16" in str(config["trainer"].get("precision")) else 4
    needed, there = each * size.sequences_per_device * size.max_length * width, _memory(config["trainer"])
    if there is not None and needed > there:
        shorter = (
            ", or data.pad_to_multiple=64, which pads each batch to its longest sequence" if "pad_to_multiple" in data else ""
        )
        fix = (
            f"a batch of {size.sequences_per_device}, each padded to that length, takes {needed >> 30:,} GiB a layer at "
            f"model.width={width}, and there are {there >> 30:,}; give a shorter one, a smaller data.batch_size{shorter}"
        )
        raise wrong_value("data.max_length", size.max_length, fix)


def _memory(trainer: Mapping[str, Any]) -> int | None:
    """Bytes of the device that trains, None where they cannot be told."""
    import torch

    if str(trainer.get("accelerator", "auto")) in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return None


def _is_count(value: Any) -> bool:
    return is_whole(value)


def device_count(trainer: Mapping[str, Any]) -> int:
    """Devices of all hosts together that `trainer.devices` and `trainer.num_nodes` mean on this machine."""
    return devices_here(trainer) * int(trainer.get("num_nodes") or 1)


def devices_here(trainer: Mapping[str, Any]) -> int:
    """Devices of this host that `trainer.devices` means."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, (list, tuple)):
        return max(1, len(devices))
    if isinstance(devices, str) and "," in devices:
        return max(1, len([part for part in devices.split(",") if part.strip()]))
    if devices in ("auto", -1, "-1", None):
        import torch

        on_gpu = str(trainer.get("accelerator", "auto")) in ("gpu", "cuda", "auto")
        return max(1, torch.cuda.device_count()) if on_gpu else 1
    return max(1, int(devices))

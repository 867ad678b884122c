"""Measures what training costs while it runs, beside what the model states about itself.

Two kinds of figures, which are not to be mixed up. *Counted*: live and visited pairs, density, FLOPs and parameters
come from ``cost(length)``, exactly, whatever the machine. *Measured*: time a step, tokens a second, peak memory and
energy are this machine's. Activation checkpointing computes the forward pass twice; the counted FLOPs leave that out,
as is usual for model FLOPs.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from longspan.cost.attention_time import AttentionClock, marked_modules
from longspan.cost.data_wait import DataWait
from longspan.cost.energy import EnergyMeter
from longspan.cost.memory import peak_memory, reset_peak
from longspan.cost.peaks import number_format, peak_flops
from longspan.cost.types import Cost

Figure = int | float | None

# enough for a median that stands still, few enough to forget a slow start
REMEMBERED_STEPS = 10_000


class MeasuredCost(Callback):
    """Measures training steps and logs ``cost/*`` together with ``accuracy/*`` at every validation.

    A step is an optimizer step: the batches accumulated for it, from the moment a batch is there to the moment the
    device has done it. Waiting for data has figures of its own (`data_time*`); validation, checkpoints and the first
    `warmup_steps` after each start are in none. The figures, with None where there is nothing to say:

        live_pairs, visited_pairs     pairs of one sequence, forward, all heads and layers; visited ones on a reference tiling
        backend_visited_pairs         those that this machine's backend visits instead; the unit names the backends that ran
        density                       live pairs over those of full two-way attention
        attention_flops_live, attention_flops   of one sequence, forward, on live and on visited pairs
        attention_share               of attention in all FLOPs that run
        attention_time, attention_time_share   of attention in a step, median of `attention_steps` steps: ms, and of its time
        flops_per_step                forward and backward, of all sequences of a step on all devices
        total_flops, total_flops_live of the training so far, also that before a resume
        parameters
        step_time, data_time          medians, ms; the second inside the loader's `next()`
        data_time_share               of `next()` in the training time so far, also that before a resume; the slowest rank's
        tokens_per_second             median, all devices, padding not counted
        peak_memory                   the unit says of what
        energy                        J of the GPUs while they trained
        mfu                           of live FLOPs, on GPUs whose peak is known

    Args:
        warmup_steps: optimizer steps left out of the medians at the start and after a resume.
        every_n_steps: measure only each n-th step; each measured step waits for the device twice. Waiting for data is
            timed in every step, on the host.
        energy: read NVML's counter where there is one.
        attention_steps: steps, spread over the first hundred after warm-up, in which attention is timed by itself; they are
            left out of the other medians. 0 for none; nor where blocks are compiled.
    """

    def __init__(self, warmup_steps: int = 5, every_n_steps: int = 1, energy: bool = True, attention_steps: int = 5) -> None:
        least_of = {
            "warmup_steps": (warmup_steps, 0),
            "every_n_steps": (every_n_steps, 1),
            "attention_steps": (attention_steps, 0),
        }
        for name, (value, least) in least_of.items():
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        self.warmup_steps = warmup_steps
        self.every_n_steps = every_n_steps
        self.energy = energy
        self.attention_steps = attention_steps
        self._clock = AttentionClock(torch.device("cpu"))
        self._attention: list[tuple[float, float]] = []  # seconds of attention and of the whole step
        self._meter = EnergyMeter()
        self._step_seconds: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._wait = DataWait()
        self._recent: list[float] = []  # seconds of the steps since the last point of a curve
        self._speeds: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._counted: dict[int, Cost] = {}
        self._length = 0
        self._ran: dict[str, int] = {}  # pairs that each backend of this machine visits, for a sequence of `_length`
        self._changing = False
        self._world = 1
        self._device: Any = None
        self._stepped = 0  # optimizer steps since this start
        self._last_global_step = 0
        self._begin_step()
        self._batch_begun: float | None = None
        self._spent = {"sequences": 0, "tokens": 0, "total_flops": 0, "total_flops_live": 0}
        self._flops_of_last_step = (0, 0)
        self._earlier_joules: float | None = None
        self._memory: tuple[float | None, str] = (None, "")
        self._joules: float | None = None
        self._peak: float | None = None
        self._shape: tuple[int, float] | None = None
        self._decodes = True
        self._parameters = 0
        self._fitting = True

    # -- hooks ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._fitting = stage == "fit"
        if self._fitting and trainer.world_size > 1:
            self._parameters = sum(parameter.numel() for parameter in getattr(pl_module, "model", pl_module).parameters())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = trainer.strategy.root_device
        self._world = max(1, trainer.world_size)
        self._stepped = 0
        self._begin_step()
        if self.energy and self._device.type == "cuda":
            self._meter = EnergyMeter(self._device)
        if self._device.type == "cuda":
            fmt = number_format(trainer.precision or "", torch.get_float32_matmul_precision())
            self._peak = peak_flops(torch.cuda.get_device_name(self._device), fmt)
        self._shape = _heads_and_layers(pl_module)
        model = getattr(pl_module, "model", None)
        self._decodes = bool(getattr(getattr(model, "backbone", model), "causal", True))  # what looks both ways holds nothing
        # attention that learns its pattern costs less as it goes on
        self._changing = any(getattr(module, "cost_changes", False) for module in pl_module.modules())
        self._clock = AttentionClock(self._device)
        reset_peak(self._device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_global_step = trainer.global_step  # not 0 after a resume
        self._wait.attach(trainer)
        self._meter.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._measures():
            return
        if self._times_attention() and not self._clock.running:
            self._clock.start(marked_modules(pl_module))
        self._synchronise()
        self._batch_begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        measured = self._batch_begun is not None
        if self._batch_begun is not None:
            self._synchronise()
            self._step_time += time.perf_counter() - self._batch_begun
            self._batch_begun = None
        self._wait.batch_ends()
        self._count(pl_module, batch)
        if trainer.global_step != self._last_global_step:  # the optimizer has stepped
            self._end_step(measured)
            self._last_global_step = trainer.global_step
        self._wait.go_on()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wait.pause()
        self._meter.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        if not trainer.sanity_checking:
            self._refresh(trainer)
            self._log(trainer, pl_module)
        self._meter.start()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._wait.pause()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wait.pause()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wait.detach(trainer)
        self._clock.stop()
        self._meter.stop()
        self._refresh(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # no reduction over ranks here: the others may be gone
        self._wait.detach(trainer)
        self._meter.stop()
        if self._device is not None:
            self._memory = peak_memory(self._device)

    def state_dict(self) -> dict[str, Any]:
        return {**self._spent, "joules": self._total_joules(self._joules), **self._wait.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._fitting:
            return  # the best checkpoint is loaded to be tested: what was spent after it was spent all the same
        self._spent = {name: int(state_dict[name]) for name in self._spent}
        self._earlier_joules = state_dict["joules"]
        self._wait.load_state_dict(state_dict)

    # -- figures -------------------------------------------------------------------------------------------------

    def costs(self) -> dict[str, tuple[Figure, str]]:
        """{name: (value, unit)} as of now, for a run record; what is not known is left out."""
        counted = self._counted.get(self._length)
        found: dict[str, tuple[Figure, str]] = {}
        if counted is not None:
            found["live_pairs"] = (counted.live_pairs, "pairs a sequence")
            found["visited_pairs"] = (counted.visited_pairs, "pairs a sequence")
            if self._shape is not None:
                heads, layers = self._shape
                # none where tokens do not mix in pairs
                found["density"] = (counted.density(self._length, heads=heads, layers=layers), "live / all pairs")
            if self._decodes:
                found["state_bytes"] = (counted.state_bytes, "bytes a sequence, decoding")
            found["attention_flops_live"] = (counted.attention_flops_live, "FLOP a sequence, forward")
            found["attention_flops"] = (counted.attention_flops, "FLOP a sequence, forward")
            if counted.total_flops:
                found["attention_share"] = (counted.attention_flops / counted.total_flops, "of the FLOPs")
            # of a sharded model a rank sees its own part alone, once training has begun
            found["parameters"] = (max(counted.parameters, self._parameters), "parameters")
            found["flops_per_step"] = (self._flops_of_last_step[0], "FLOP a step")
            found["total_flops"] = (self._spent["total_flops"], "FLOP, training so far")
            found["total_flops_live"] = (self._spent["total_flops_live"], "FLOP, training so far")
        if self._ran:
            found["backend_visited_pairs"] = (
                sum(self._ran.values()),
                f"pairs a sequence, forward, by {' and '.join(sorted(self._ran))} on this machine",
            )
        found["tokens"] = (self._spent["tokens"], "tokens, training so far")
        if self._step_seconds:
            seconds = statistics.median(self._step_seconds)
            found["step_time"] = (1000 * seconds, "ms a step")
            found["tokens_per_second"] = (statistics.median(self._speeds), "tokens/s")
            if self._peak is not None and counted is not None:
                found["mfu"] = (self._flops_of_last_step[1] / seconds / (self._peak * self._world), "of peak")
        if self._attention:
            found["attention_time"] = (1000 * statistics.median(part for part, _ in self._attention), "ms a step")
            found["attention_time_share"] = (statistics.median(part / step for part, step in self._attention), "of the step")
        waited, share = self._wait.median(), self._wait.share()
        if waited is not None:
            found["data_time"] = (1000 * waited, "ms a step")
        if share is not None:
            found["data_time_share"] = (share, "of the training time")
        if self._memory[0] is not None:
            found["peak_memory"] = self._memory
        joules = self._total_joules(self._joules)
        if joules is not None:
            found["energy"] = (joules, "J")
        return found

    def curve_points(self) -> dict[str, float]:
        """{curve: its newest point} for a run record, of attention that learns its pattern, whose cost changes as it trains.

        Its density, the same with visited pairs in place of live ones, and the median of the steps since the last call.
        """
        points: dict[str, float] = {}
        counted = self._counted.get(self._length)
        if not self._changing:
            return points
        if counted is not None and self._shape is not None:
            heads, layers = self._shape
            pairs = heads * layers * self._length**2
            points = {"cost/density": counted.live_pairs / pairs, "cost/visited_density": counted.visited_pairs / pairs}
        if self._recent:
            points["cost/step_time"] = 1000 * statistics.median(self._recent)
            self._recent = []
        return points

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One row for both, so that a logger can draw accuracy over cost."""
        row = {f"cost/{name}": float(value) for name, (value, _) in self.costs().items() if value is not None}
        for name in getattr(pl_module, "metrics_info", {}):
            if f"val/{name}" in trainer.callback_metrics:
                row[f"accuracy/{name}"] = float(trainer.callback_metrics[f"val/{name}"])
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)

    def _refresh(self, trainer: Trainer) -> None:
        """Of all ranks, as of now: the largest peak of memory, all energy, the longest wait. All ranks must come here."""
        value, unit = peak_memory(self._device)
        self._memory = (_reduced(trainer, value, "max"), unit)
        self._joules = _reduced(trainer, self._meter.joules, "sum")
        self._wait.compare_ranks(lambda share: _reduced(trainer, share, "max"))

    def _total_joules(self, joules: float | None) -> float | None:
        if joules is None:
            return self._earlier_joules
        return joules + (self._earlier_joules or 0.0)

    # -- steps ---------------------------------------------------------------------------------------------------

    def _measures(self) -> bool:
        """Whether the step at hand is one that counts."""
        return self._stepped >= self.warmup_steps and (self._stepped - self.warmup_steps) % self.every_n_steps == 0

    def _times_attention(self) -> bool:
        """Whether the step at hand, which is measured, is one of those in which attention is timed."""
        measured = (self._stepped - self.warmup_steps) // self.every_n_steps
        apart = max(2, 100 // max(1, self.attention_steps) // self.every_n_steps)  # a short run needs its steps for the medians
        return measured % apart == apart - 1 and measured // apart < self.attention_steps

    def _begin_step(self) -> None:
        self._step_time = 0.0
        self._step_tokens = self._step_flops = self._step_flops_live = 0

    def _count(self, pl_module: LightningModule, batch: Any) -> None:
        sequences, length, tokens = _size(batch)
        sequences, tokens = sequences * self._world, tokens * self._world
        self._spent["sequences"] += sequences
        self._spent["tokens"] += tokens
        self._step_tokens += tokens
        if self._changing or length not in self._counted:
            counted = _cost_of(pl_module, length)
            if counted is None:
                return
            self._counted[length] = counted
        if length > self._length:
            self._length = length
            self._ran = _ran_by(pl_module, *_size(batch)[:2])
        step = self._counted[length].training()
        self._step_flops += sequences * step.total_flops
        self._step_flops_live += sequences * step.total_flops_live

    def _end_step(self, measured: bool) -> None:
        self._spent["total_flops"] += self._step_flops
        self._spent["total_flops_live"] += self._step_flops_live
        self._flops_of_last_step = (self._step_flops, self._step_flops_live)
        self._wait.step_ends(counted=self._stepped >= self.warmup_steps and not self._clock.running)
        if self._clock.running:
            self._attention.append((self._clock.stop(), self._step_time))
        elif measured and self._step_time > 0:
            self._step_seconds.append(self._step_time)
            if self._changing:
                self._recent.append(self._step_time)
            self._speeds.append(self._step_tokens / self._step_time)
        self._stepped += 1
        self._begin_step()

    def _synchronise(self) -> None:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _size(batch: Any) -> tuple[int, int, int]:
    """(sequences, padded length, tokens that are no padding) of a batch."""
    tokens = batch["tokens"] if isinstance(batch, dict) else batch[0] if isinstance(batch, (list, tuple)) else batch
    sequences, length = int(tokens.shape[0]), int(tokens.shape[1])
    lengths = batch.get("lengths") if isinstance(batch, dict) else None
    return sequences, length, int(lengths.sum()) if isinstance(lengths, Tensor) else sequences * length


def _ran_by(pl_module: LightningModule, sequences: int, length: int) -> dict[str, int]:
    """{backend: pairs of one sequence, all layers} of the attention modules that say what runs."""
    device = getattr(pl_module, "device", torch.device("cpu"))
    dtype = next((parameter.dtype for parameter in pl_module.parameters()), torch.float32)
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    found: dict[str, int] = {}
    for module in pl_module.modules():
        tell = getattr(module, "ran", None)
        if callable(tell):
            backend, pairs = tell(sequences, length, dtype, device)
            found[backend] = found.get(backend, 0) + pairs
    return found


def _cost_of(pl_module: LightningModule, length: int) -> Cost | None:
    """What the task states with its head, else its model; None where neither states anything."""
    for part in (pl_module, getattr(pl_module, "model", None)):
        state = getattr(part, "cost", None)
        if callable(state):
            stated = state(length)
            if isinstance(stated, Cost):
                return stated
    return None


def _heads_and_layers(pl_module: LightningModule) -> tuple[int, float] | None:
    model = getattr(pl_module, "model", None)
    backbone = getattr(model, "backbone", model)  # a model may be a backbone with a head
    whole = getattr(backbone, "full_layers", None)  # of an encoder-decoder, whose layers differ in length
    if whole is not None:
        return backbone.settings.heads, float(whole)  # type: ignore[union-attr]
    for place in (backbone, getattr(backbone, "settings", None)):
        heads, layers = getattr(place, "heads", None), getattr(place, "layers", None)
        if isinstance(heads, int) and isinstance(layers, (int, float)):
            return heads, layers
    return None


def _reduced(trainer: Trainer, value: float | None, how: str) -> float | None:
    if value is None or trainer.world_size < 2:
        return value
    # float64 has no counterpart on some devices, and MiB and joules need no more
    tensor = torch.tensor(value, dtype=torch.float32, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(tensor, reduce_op=how))

"""The base class of tasks: steps, optimizer and schedule, and a check that the loss stays finite.

Legend: B batch, T tokens, C model width.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torchmetrics import MetricCollection

from longspan.config.errors import CallError, wrong_value
from longspan.cost import Cost
from longspan.models.heads import HeadedModel
from longspan.models.transformer import Transformer
from longspan.models.warm_start import plain_names
from longspan.tasks.breakdown import BREAKDOWN, Breakdown
from longspan.tasks.errors import NonFiniteLossError
from longspan.tasks.optimizers import adamw, decay_groups, own_rates, undecayed_names
from longspan.tasks.pattern_learning import PatternLearning, pattern_learners
from longspan.tasks.schedules import warmup_cosine
from longspan.tasks.step_mean import StepMean

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One batch's outcome: its mean loss, how many items the mean is over, and what its metrics are updated with."""

    loss: Tensor
    count: Tensor | int
    updates: Mapping[str, tuple[Any, ...]]


class Task(pl.LightningModule):
    """A LightningModule over a backbone and a head.

    Args:
        model: the backbone.
        head: turns its hidden states into predictions.
        metrics: by group name; each group is updated with the arguments that :meth:`step` gives for it.
        optimizer: called with parameter groups; None means :func:`longspan.tasks.optimizers.adamw` at 1e-3.
        scheduler: called with the optimizer and ``total_steps=``; None means warm-up and cosine.
        decay_embeddings: whether weight decay shrinks embeddings.
        hyperparameters: plain values that checkpoints carry.
    """

    causal: bool = False  # which kind of model the task wants
    model_facts: ClassVar[tuple[str, ...]] = ()  # what of `data_arguments` the model is built with, not the task
    metrics_info: dict[str, bool]  # name -> whether higher is better
    primary_metric: str

    def __init__(
        self,
        model: Transformer,
        head: nn.Module,
        metrics: Mapping[str, MetricCollection],
        *,
        optimizer: Callable[..., Any] | None,
        scheduler: Callable[..., Any] | None,
        decay_embeddings: bool,
        hyperparameters: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if self.causal and not model.causal:
            raise wrong_value(
                "model", type(model).__name__, f"{type(self).__name__} needs a Decoder: an Encoder sees its own targets"
            )
        self.model = HeadedModel(model, head)
        self.val_metrics = _clone(metrics, "val/")
        self.test_metrics = _clone(metrics, "test/")
        self.optimizer_maker = optimizer or partial(adamw, lr=1e-3)
        self.scheduler_maker = scheduler or warmup_cosine
        self._pattern_learning: PatternLearning | None = None
        self._step_mean = StepMean()
        self._breakdown = Breakdown()
        self._undecayed = undecayed_names(self, decay_embeddings=decay_embeddings)
        self.save_hyperparameters(
            {
                "task": type(self).__name__,
                "vocab_size": model.vocab_size,
                "max_length": model.max_length,
                **hyperparameters,
            },
            logger=False,
        )

    # -- what each task says --------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        """Constructor arguments that follow from a data module (after its `setup`)."""

    @abstractmethod
    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        """Loss of a batch and, unless `stage` is "train", what the metrics are updated with."""

    def attach(self, data: Any) -> None:
        """Takes from a data module, after its `setup`, what no plain value tells, such as a vocabulary; most tasks nothing."""

    def check_training(self, data: Any) -> None:
        """Raises ConfigError where the model cannot be trained on what the data module gives for it; most can."""

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, **given: Any) -> Any:  # type: ignore[override]
        """The task of a checkpoint with its weights, in evaluation mode.

        A checkpoint of `train.py` says how to build it and needs no more arguments; one of a Trainer of your own needs the
        constructor's, `model=` among them, as Lightning's method does.

        Raises:
            CheckpointError: see `longspan.load`.
            TypeError: the checkpoint is of another task.
        """
        if given:
            return super().load_from_checkpoint(checkpoint_path, map_location=map_location, **given)
        # by name: what loads checkpoints is built on tasks
        loaded = import_module("longspan.inference.load").load(checkpoint_path, map_location or "cpu").task
        if not isinstance(loaded, cls):
            raise TypeError(f"{checkpoint_path} is a checkpoint of {type(loaded).__name__}, not of {cls.__name__}")
        return loaded

    # -- shared ---------------------------------------------------------------------------------------------------

    def forward(self, tokens: Tensor, *, lengths: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logits of tokens [B, T]."""
        return self.model(tokens, lengths=lengths, segments=segments)

    def hidden(self, batch: Batch, tokens: Tensor | None = None) -> Tensor:
        """Hidden states [B, T, C] of a batch, or of other tokens in the place of its own."""
        if tokens is None:
            tokens = self.entry(batch, "tokens")
        return self.model.backbone(tokens, lengths=batch.get("lengths"), segments=batch.get("segments"))

    def entry(self, batch: Batch, name: str) -> Tensor:
        """A tensor of the batch.

        Raises:
            CallError: the batch has none of that name.
        """
        if name not in batch:
            raise CallError(f"{type(self).__name__} needs {name!r} in each batch; it has {', '.join(batch) or 'nothing'}")
        return batch[name]

    def cost(self, length: int) -> Cost:
        """Cost of one sequence of `length` tokens, forward."""
        return self.model.cost(length)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.step(batch, batch_idx, "train")
        self._check_finite(step.loss, batch, batch_idx, "train")
        several = self.trainer.world_size > 1
        self.log("train/loss", step.loss, prog_bar=True, sync_dist=several, batch_size=_sequences(batch))
        return self._step_mean.share(step.loss + self._auxiliary_loss(batch), step.count, self.trainer)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As Lightning's, and by norm under FSDP too: each rank has a part of each gradient, and only FSDP knows the norm."""
        by_norm = gradient_clip_algorithm in (None, "norm")
        clip = getattr(self.trainer.strategy.model, "clip_grad_norm_", None) if by_norm and gradient_clip_val else None
        if clip is not None:
            clip(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self._step_mean.settle(self)
        for module in self.model.modules():
            if hasattr(module, "end_step"):
                module.end_step()  # type: ignore[operator]  # takes over what it gathered in the passes of this step

    def _auxiliary_loss(self, batch: Batch) -> Tensor | float:
        """The sum of what modules with an ``auxiliary_loss()`` ask for beside the task's own loss."""
        modules: list[Any] = [module for module in self.model.modules() if hasattr(module, "auxiliary_loss")]
        parts = [module.auxiliary_loss() for module in modules]
        if not parts:
            return 0.0
        total = torch.stack(parts).sum()
        self.log("train/auxiliary_loss", total, batch_size=_sequences(batch))
        return total

    def configure_callbacks(self) -> list[pl.Callback]:
        """What tells the record of breakdowns and, where attention learns its pattern, what drives it; the same for each
        use of a trainer."""
        if self._pattern_learning is None and pattern_learners(self.model):
            self._pattern_learning = PatternLearning()
        wanted: list[pl.Callback] = [*([self._pattern_learning] if self._pattern_learning else []), self._breakdown]
        return [callback for callback in wanted if callback not in self.trainer.callbacks]  # type: ignore[attr-defined]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, "test", self.test_metrics)

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str, metrics: nn.ModuleDict) -> None:
        step = self.step(batch, batch_idx, stage)
        self._check_finite(step.loss, batch, batch_idx, stage)
        # Lightning averages the weights over the ranks as whole numbers: as multiples of the ranks they stay exact
        weight = max(1, int(step.count)) * self.trainer.world_size
        self.log(f"{stage}/loss", step.loss, on_epoch=True, sync_dist=True, batch_size=weight)
        for group, arguments in step.updates.items():
            collection: Any = metrics[group]
            collection.update(*arguments)
            if not group.startswith(BREAKDOWN):
                self._log_metrics(collection, stage, batch)

    def on_validation_epoch_end(self) -> None:
        self._keep_breakdowns("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._keep_breakdowns("test", self.test_metrics)

    @property
    def breakdowns(self) -> dict[str, Any]:
        """{"accuracy_by_length": {"test": ...}} of the last evaluation of each split, as the record has it."""
        return self._breakdown.record_extra()

    def _keep_breakdowns(self, stage: str, metrics: nn.ModuleDict) -> None:
        for group, collection in metrics.items():
            if group.startswith(BREAKDOWN):
                self._breakdown.keep(collection, stage)

    def _log_metrics(self, metrics: Any, stage: str, batch: Batch) -> None:
        for name, metric in metrics.items():
            shown = stage == "val" and name == f"val/{self.primary_metric}"
            self.log(name, metric, on_epoch=True, prog_bar=shown, batch_size=_sequences(batch))

    def _check_finite(self, loss: Tensor, batch: Batch, batch_idx: int, stage: str) -> None:
        if torch.isfinite(loss.detach()):
            return
        rank = self.global_rank
        path = Path(self.trainer.default_root_dir) / (f"nan_batch.rank{rank}.pt" if rank else "nan_batch.pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in batch.items()}
        where = {"stage": stage, "step": self.global_step, "epoch": self.current_epoch, "batch_idx": batch_idx}
        torch.save({**where, "loss": float(loss), "batch": plain}, path)
        raise NonFiniteLossError(stage, float(loss), self.global_step, self.current_epoch, batch_idx, path)

    def configure_optimizers(self) -> Any:
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise wrong_value("trainer.max_steps", -1, "the schedule needs an end: set max_steps or max_epochs")
        groups = decay_groups(self, self._undecayed, own_rates(self, max(1, int(steps))))
        optimizer = self.optimizer_maker(groups, **self._unfused())
        scheduler = self.scheduler_maker(optimizer, total_steps=max(1, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    @property
    def lr(self) -> float:
        """The optimizer's learning rate, which Lightning's Tuner reads and sets before the optimizer is made."""
        settings = getattr(self.optimizer_maker, "keywords", {})
        if "lr" not in settings:
            raise AttributeError("optimizer has no lr of its own; give the task an optimizer such as partial(adamw, lr=1e-3)")
        return float(settings["lr"])

    @lr.setter
    def lr(self, rate: float) -> None:
        self.optimizer_maker = partial(self.optimizer_maker, lr=float(rate))

    def _unfused(self) -> dict[str, Any]:
        """Lightning's mixed precision, bfloat16 too, refuses to clip what fused AdamW steps: go unfused there."""
        mixed = isinstance(self.trainer.precision_plugin, MixedPrecision) and bool(self.trainer.gradient_clip_val)
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        takes = "fused" in inspect.signature(self.optimizer_maker).parameters
        return {"fused": False} if (mixed or scaled) and takes else {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # FSDP has loaded the weights by now, and taken them out
            checkpoint["state_dict"] = plain_names(checkpoint["state_dict"])

    def generator(self, seed: int, stage: str, batch_idx: int, device: torch.device) -> torch.Generator:
        """Random numbers that depend on the place in the run alone, so that they survive a resume.

        Outside training they are the same in every epoch and on every device.
        """
        training = stage == "train"
        place = (seed, stage, self.current_epoch if training else 0, batch_idx, self.global_rank)
        number = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=7).digest())
        return torch.Generator(device if training else "cpu").manual_seed(number)


def _clone(metrics: Mapping[str, MetricCollection], prefix: str) -> nn.ModuleDict:
    return nn.ModuleDict({group: collection.clone(prefix=prefix) for group, collection in metrics.items()})


def _sequences(batch: Batch) -> int:
    return len(batch["tokens"])

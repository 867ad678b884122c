"""Trains learned patterns: passes the progress of the run to their attention modules, and hardens them in time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from longspan.config.errors import wrong_value

log = logging.getLogger(__name__)

MOST_POINTS = 400  # of the density curve


@runtime_checkable
class LearnsPattern(Protocol):
    """An attention module that learns its pattern.

    Attributes:
        hardened: whether the pattern is final.
        harden_at: the share of the run after which it is to be.
    """

    @property
    def hardened(self) -> bool: ...

    @property
    def harden_at(self) -> float: ...

    def begin_step(self, step: int, total: int) -> None: ...

    def auxiliary_loss(self) -> Tensor: ...

    def harden(self) -> Any: ...

    def density(self) -> float: ...


def pattern_learners(module: nn.Module) -> list[Any]:
    """The modules within that learn their pattern, first layer first."""
    return [m for m in module.modules() if isinstance(m, LearnsPattern)]


class PatternLearning(pl.Callback):
    """Drives every module that learns its pattern; tasks with such modules bring it along.

    Patterns harden before the first step past their share of the run (the last step at the latest, or when training ends
    early). Validation figures are taken just before and just after. Checkpoints that were best until then, and the
    patience of early stopping, are forgotten: they belong to a denser model than was asked for.
    """

    def __init__(self) -> None:
        self._density: list[tuple[int, float]] = []
        self._hardening: dict[str, Any] = {}
        self._modules: list[Any] = []
        self._total = 1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if type(trainer.strategy).__name__ in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
            raise wrong_value(
                "trainer.strategy", type(trainer.strategy).__name__, "it shards what patterns are learned from; use trainer=ddp"
            )
        self._modules = pattern_learners(pl_module)
        self._total = max(1, int(trainer.estimated_stepping_batches))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        share = max(module.harden_at for module in self._modules)
        if step >= min(share * self._total, self._total - 1) and not self._done():
            self._harden(trainer, pl_module)
        for module in self._modules:
            module.begin_step(step, self._total)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = max(1, getattr(trainer, "log_every_n_steps", 50))
        if batch_idx % every == 0 or (trainer.global_step - 1) % every == 0:
            self._note(trainer.global_step)
            pl_module.log("train/density", self._density[-1][1], batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the last checkpoint: those callbacks come after all others."""
        if not self._done():
            log.warning("Training ended at step %d, before patterns were hardened; doing so now", trainer.global_step)
            self._harden(trainer, pl_module)
        self._note(trainer.global_step)

    def record_extra(self) -> dict[str, Any]:
        """For the run's record: density by step, and validation figures before and after hardening."""
        if not self._density:
            return {}
        tables = [module.gate_table() for module in self._modules if hasattr(module, "gate_table") and module.hardened]
        learned = {"density": self._density, **self._hardening, **({"connections": tables} if tables else {})}
        return {"learned_pattern": learned}

    def curve_points(self) -> dict[str, float]:
        """For the run's record: the density that is aimed at as of now, where all modules aim at one."""
        asked = [module.density_asked() for module in self._modules if hasattr(module, "density_asked")]
        return {"cost/density_asked": sum(asked) / len(asked)} if asked and len(asked) == len(self._modules) else {}

    def state_dict(self) -> dict[str, Any]:
        return {"density": [list(point) for point in self._density], "hardening": self._hardening}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._density = [(int(step), float(value)) for step, value in state_dict["density"]]
        self._hardening = state_dict["hardening"]

    def _done(self) -> bool:
        return all(module.hardened for module in self._modules)

    def _note(self, step: int) -> None:
        value = sum(module.density() for module in self._modules) / len(self._modules)
        while self._density and self._density[-1][0] >= step:
            self._density.pop()
        self._density.append((step, value))
        if len(self._density) > MOST_POINTS:
            self._density = self._density[:-1:2] + self._density[-1:]

    def _harden(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = validation_figures(trainer, pl_module)
        for module in self._modules:
            module.harden()
        after = validation_figures(trainer, pl_module)
        density = sum(module.density() for module in self._modules) / len(self._modules)
        self._hardening = {"hardened_at_step": trainer.global_step, "final_density": density, "before": before, "after": after}
        log.info("Patterns are final from step %d on: density %.4f, %s", trainer.global_step, density, _change(before, after))
        forget_best(trainer)
        if trainer.is_global_zero:
            self._draw(Path(trainer.default_root_dir) / "patterns")

    def _draw(self, folder: Path) -> None:
        """A picture a layer, a panel a head."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        try:
            folder.mkdir(parents=True, exist_ok=True)
            for layer, module in enumerate(self._modules):
                figure = module.pattern.plot(module.length, heads=module.heads, causal=module.causal, width=2.5)
                FigureCanvasAgg(figure)
                figure.suptitle(f"layer {layer}, {module.length} tokens, density {module.density():.4f}", fontsize=10)
                figure.savefig(folder / f"layer{layer}.png", dpi=80)
        except (OSError, ValueError) as error:  # a picture is not worth a run
            log.warning("No pictures of the patterns: %s", error)


def _change(before: dict[str, float], after: dict[str, float]) -> str:
    return ", ".join(f"{name} {before[name]:.4f} -> {after[name]:.4f}" for name in before) or "no validation data"


@torch.no_grad()
def validation_figures(trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
    """The task's metrics on the validation data as of now, outside Lightning's own validation; nothing is logged."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.setup_data()
    loader, limit = trainer.val_dataloaders, sum(trainer.num_val_batches)
    if loader is None or not limit or not hasattr(pl_module, "val_metrics"):
        return {}
    metrics = {name: group.clone() for name, group in pl_module.val_metrics.items()}
    training = pl_module.training
    pl_module.eval()
    for index, batch in enumerate(loader):
        if index >= limit:
            break
        with trainer.precision_plugin.val_step_context():
            step = pl_module.step(trainer.strategy.batch_to_device(batch), index, "val")
        for name, arguments in step.updates.items():
            metrics[name].update(*arguments)
    pl_module.train(training)
    found = {name.removeprefix("val/"): value for group in metrics.values() for name, value in group.compute().items()}
    # A task may keep more beside its metrics, such as accuracy at each distance.
    return {name: float(found[name]) for name in pl_module.metrics_info if name in found}


def forget_best(trainer: pl.Trainer) -> None:
    """Forgets the best figure so far and resets patience; deletes the files of the best checkpoints."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint):
            for path in list(callback.best_k_models):
                if Path(path).is_file() and callback.dirpath and Path(path).parent == Path(callback.dirpath):
                    trainer.strategy.remove_checkpoint(path)
            worst = torch.tensor(float("-inf") if callback.mode == "max" else float("inf"))
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = callback.current_score = None
            callback.kth_value = worst
            callback._last_global_step_saved = -1
        elif isinstance(callback, EarlyStopping):
            callback.wait_count = 0
            callback.best_score = torch.tensor(torch.inf if callback.monitor_op == torch.lt else -torch.inf)

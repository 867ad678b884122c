"""Leaves a small picture of the attention pattern in the run's record, for reports to draw."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from longspan.training.callbacks.attention_weights import CaughtWeights

SHADES = "0123456789abcdef"
# beyond it, a cell holds so many pairs that counting them would be felt at the start of a run
LONGEST = 65_536


class PatternSketch(pl.Callback):
    """``extra.pattern`` of the record: a list of {layers, length, causal, rows} for each distinct pattern of the model.

    `rows` are strings with a character a cell: the share of live pairs, mean over heads, as a hexadecimal digit of its
    square root (thin patterns stay visible), 0 for none at all. Attention that chooses by content leaves what it attended to
    at the start of a validation sequence, in the last validation of the training.

    Args:
        cells: cells a side at most.
        patterns: distinct patterns kept at most, from the first layer on.
    """

    def __init__(self, cells: int = 64, patterns: int = 4) -> None:
        self.cells = cells
        self.patterns = patterns
        self._sketches: list[dict[str, Any]] = []
        self._weights = CaughtWeights()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._draw(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        compiled = getattr(getattr(_backbone(pl_module), "settings", None), "compile", False)  # a hook would compile it anew
        if batch_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking and not compiled:
            self._weights.listen(attention_modules(pl_module)[: self.patterns])

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._weights.stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw_again(trainer, pl_module)
        if trainer.is_global_zero:
            chosen = attention_modules(pl_module)
            self._sketches += [
                {"layers": [layer], "length": live.shape[0], "causal": chosen[layer].causal, "rows": shades(live, self.cells)}
                for layer, live in self._weights.live_shares()
            ]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw_again(trainer, pl_module)

    def _draw_again(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attention that learns its pattern has another one by now."""
        if any(getattr(module, "cost_changes", False) for module in pl_module.modules()):
            self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        backbone: Any = _backbone(pl_module)
        layers: dict[Any, list[int]] = {}
        for layer, attention in enumerate(attention_modules(pl_module)):
            pattern = getattr(attention, "pattern", None)
            if pattern is not None:
                layers.setdefault((pattern, attention.heads, attention.causal), []).append(layer)
        self._sketches = [
            {"layers": where, "length": backbone.max_length, "causal": causal, "rows": rows}
            for (pattern, heads, causal), where in list(layers.items())[: self.patterns]
            if (rows := sketch(pattern, backbone.max_length, heads, causal, self.cells))
        ]

    def record_extra(self) -> dict[str, Any]:
        """What the run's record takes over."""
        return {"pattern": self._sketches} if self._sketches else {}


def _backbone(pl_module: pl.LightningModule) -> Any:
    model = getattr(pl_module, "model", None)
    return getattr(model, "backbone", model)


def attention_modules(pl_module: pl.LightningModule) -> list[Any]:
    """The attention of each layer, none where the model does not tell."""
    backbone = _backbone(pl_module)
    return backbone.attention_modules() if hasattr(backbone, "attention_modules") else []


def shades(live: Any, cells: int) -> list[str]:
    """Rows of shades of the live shares [T, T] of pairs, mean over cells; the last ones may be smaller."""
    from torch.nn.functional import avg_pool2d

    cell = 1
    while cell * cells < live.shape[0]:
        cell *= 2
    means = avg_pool2d(live[None, None].float(), cell, ceil_mode=True, count_include_pad=False)[0, 0]
    levels = means.clamp(0, 1).sqrt().mul(len(SHADES) - 1).ceil().int().tolist()
    return ["".join(SHADES[level] for level in row) for row in levels]


def sketch(pattern: Any, length: int, heads: int, causal: bool, cells: int = 64) -> list[str]:
    """Rows of shades, queries downward and keys to the right; empty where the sequence is too long to count quickly."""
    from longspan.patterns.plot import cell_shares

    if not 1 <= length <= LONGEST:
        return []
    cell = 1
    while cell * cells < length:
        cell *= 2
    total: Any = 0
    for members, rule in pattern.head_rules(length, length, heads, causal, pattern.home):
        if rule.per_head:
            total = total + sum(cell_shares(rule, head, length, cell, pattern.home) for head in members)
        else:
            total = total + len(members) * cell_shares(rule, members[0], length, cell, pattern.home)
    levels = (total / heads).clamp(0, 1).sqrt().mul(len(SHADES) - 1).ceil().int().tolist()
    return ["".join(SHADES[level] for level in row) for row in levels]

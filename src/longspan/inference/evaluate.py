"""A checkpoint's figures on a split, the same as at the end of its run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from longspan.config.errors import CheckpointError, ConfigError
from longspan.config.reachable import checkpoint_file
from longspan.inference.rebuild import rebuild
from longspan.records import Accuracy, Record
from longspan.tasks import Task, data_facts
from longspan.tasks.build import STRANDS

SPLITS = {"test": "test", "val": "val", "validation": "val"}


def evaluate(checkpoint: str, words: Sequence[str], conf: Path, *, split: str = "test", command: str = "") -> Record:
    """Evaluates on the split of the checkpoint's data, or of the data that the overrides name.

    Raises:
        CheckpointError: the data has other labels or symbols than the checkpoint was trained on.
    """
    if split not in SPLITS:
        raise ConfigError(f"split={split} must be one of test, val")
    name = SPLITS[split]
    started, begun = datetime.now(UTC), time.monotonic()
    run = rebuild(checkpoint, words, conf)
    run.datamodule.prepare_data()
    run.datamodule.setup("test" if name == "test" else "validate")
    _check_same_labels(run.facts, data_facts(cast(type[Task], type(run.task)), run.datamodule))
    trainer = run.trainer()
    (trainer.test if name == "test" else trainer.validate)(run.task, run.datamodule, verbose=False)
    baselines = run.datamodule.baselines(name)
    accuracy = {
        metric: Accuracy(
            value=trainer.callback_metrics[f"{name}/{metric}"].item(),
            higher_is_better=higher,
            baseline=baselines.get(metric),
            split=name,
        )
        for metric, higher in run.task.metrics_info.items()  # type: ignore[union-attr, operator]
        if f"{name}/{metric}" in trainer.callback_metrics
    }
    return Record(
        status="complete",
        config=run.config,
        command=command,
        seed=run.config["seed"],
        accuracy=accuracy,
        started=started,
        seconds=round(time.monotonic() - begun, 3),
        variant=run.config["attention_name"],
        name=run.config["name"],
        data=run.datamodule.describe(),
        extra={"checkpoint": str(checkpoint_file("checkpoint", checkpoint)), **getattr(run.task, "breakdowns", {})},
    )


def _check_same_labels(trained: dict[str, Any], here: dict[str, Any]) -> None:
    unsaid = {STRANDS} - {*trained}  # what older checkpoints do not say follows from the vocabulary, whose size they do
    for key in sorted({*trained, *here} - unsaid):
        if trained.get(key) != here.get(key):
            if key == "vocab_size" and trained.get("patches") and here.get("patches"):
                raise CheckpointError(_other_patches(int(trained[key]), int(here[key])))
            raise CheckpointError(
                f"the checkpoint was trained with {key} {trained.get(key)}, this data has {here.get(key)}: give data "
                "that agrees, or train on this data with init_from="
            )


def _other_patches(trained: int, here: int) -> str:
    """What to do about patches of other numbers, in as many rows and columns: of other channels, or of another size."""
    if trained == 3 * here:
        said = "images in colour (3 channels), this data is grey (1 channel)"
        fix = "convert its images to colour (RGB), or train on grey ones by data.grey=true"
    elif here == 3 * trained:
        said, fix = "grey images (1 channel), this data is in colour (3 channels)", "give data.grey=true"
    else:
        said = f"patches of {trained} numbers, this data has patches of {here}"
        fix = "give images of the same size and channels, and the same data.patch"
    return f"the checkpoint was trained on {said}: {fix}"

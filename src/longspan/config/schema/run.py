"""The values that the keys of `conf/config.yaml`, `conf/trainer/`, `conf/callbacks/` and `conf/logger/` take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from longspan.config.schema.kinds import (
    Count,
    CountOrZero,
    FilePath,
    Fix,
    Fraction,
    Name,
    NotNegative,
    Positive,
    Seed,
    Settings,
    Text,
    settings_of,
    whole,
)

Limit = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)] | None,
    Fix("a whole number of batches, a share of them from 0 to 1, or null for all"),
]
LimitOfTraining = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | None,
    Fix("a whole number of batches, 1 or more, a share of them up to 1, or null for all"),
]
TIME = r"^\d+:\d{2}:\d{2}:\d{2}$"  # days, hours, minutes, seconds
Group = Annotated[dict[str, Any], Fix("one of its files by name, or a mapping {key: value}")]


# which of them a run has, only its task knows; see `BestCheckpoint.setup` and the check of the callbacks before training
Monitor = Annotated[str, Field(pattern=r"^(val|train|cost)/.+"), Fix("a figure that the run logs, such as val/loss")]


class Run(Settings):
    """The keys at the top level."""

    closed = False
    required = (
        "name",
        "group",
        "seed",
        "tokens_per_step",
        "output_dir",
        "ckpt_path",
        "init_from",
        "test",
        "attention",
        "data",
        "model",
        "optimizer",
        "scheduler",
        "task",
        "trainer",
    )

    name: Name
    attention_name: Name
    task_name: Name
    group: Name | None
    seed: Seed
    tokens_per_step: Count | None
    output_dir: FilePath
    ckpt_path: FilePath | None
    init_from: FilePath | None
    test: bool
    attention: Group
    callbacks: Group | None
    data: Group
    logger: Group | None
    model: Group
    optimizer: Group
    scheduler: Group
    task: Group
    trainer: Group


@settings_of("lightning.pytorch.Trainer")
class Trainer(Settings):
    closed = False

    default_root_dir: FilePath | None
    accelerator: Literal["cpu", "gpu", "cuda", "mps", "auto"]
    devices: Annotated[
        Annotated[int, Field(ge=1, le=4096)]
        | Literal["auto", "-1", -1]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[str, Field(pattern=r"^\d+(,\d+)*,?$")],
        Fix("a number of devices, 1 or more, a list of their numbers such as [0,1], or auto"),
    ]
    num_nodes: whole(1, 4096)  # type: ignore[valid-type]
    strategy: (
        Literal[
            "auto",
            "single_device",
            "ddp",
            "ddp_find_unused_parameters_false",
            "ddp_find_unused_parameters_true",
            "ddp_spawn",
            "ddp_fork",
            "ddp_notebook",
            "fsdp",
            "fsdp_cpu_offload",
            "model_parallel",
            "deepspeed",
            "deepspeed_stage_1",
            "deepspeed_stage_2",
            "deepspeed_stage_3",
        ]
        | dict[str, Any]
    )
    precision: Literal[
        "32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "16", "bf16", "32", "64", 16, 32, 64
    ]
    max_epochs: Annotated[int, Field(ge=-1), Fix("a whole number of epochs, or null")] | None
    min_epochs: Count | None
    max_steps: Annotated[
        Literal[-1] | Annotated[int, Field(ge=1, le=2**40)],
        Fix("a whole number of steps, 1 or more, or -1 where trainer.max_epochs ends the run"),
    ]
    min_steps: Count | None = None
    max_time: Annotated[str, Field(pattern=TIME), Fix("days:hours:minutes:seconds as 00:12:00:00")] | dict[str, Any] | None
    accumulate_grad_batches: Count
    gradient_clip_val: NotNegative | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    val_check_interval: Annotated[
        Annotated[int, Field(ge=1)]
        | Annotated[float, Field(gt=0, le=1)]
        | Annotated[str, Field(pattern=TIME)]
        | dict[str, Any]
        | None,
        Fix("a whole number of training batches, 1 or more, or with trainer.check_val_every_n_epoch a share of an epoch"),
    ]
    check_val_every_n_epoch: Count | None
    limit_train_batches: LimitOfTraining
    limit_val_batches: Limit
    limit_test_batches: Limit
    limit_predict_batches: Limit = None
    num_sanity_val_steps: Annotated[int, Field(ge=-1), Fix("a whole number of batches, or -1 for all")] | None
    log_every_n_steps: Count
    deterministic: bool | Literal["warn"] | None
    benchmark: bool | None
    fast_dev_run: bool | CountOrZero
    overfit_batches: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)], Fix("a whole number of batches, or a share of them")
    ]
    detect_anomaly: bool
    profiler: Literal["simple", "advanced", "pytorch", "xla"] | dict[str, Any] | None
    enable_model_summary: bool
    enable_progress_bar: bool
    use_distributed_sampler: bool
    inference_mode: bool

    def problem(self) -> tuple[str, str] | None:
        if self.max_steps == -1 and self.max_epochs in (None, -1) and not self.fast_dev_run:
            return "max_steps", "the schedule needs an end: give a number of steps, or trainer.max_epochs"
        if isinstance(self.val_check_interval, float) and self.check_val_every_n_epoch is None:
            fix = "a share of an epoch needs trainer.check_val_every_n_epoch=1; give a whole number of batches without it"
            return "val_check_interval", fix
        return None


@settings_of("longspan.training.sharding.ShardedBlocks")
class Sharded(Settings):
    closed = False

    shard: Literal["full", "gradients", "hybrid"]
    cpu_offload: bool


@settings_of("longspan.training.callbacks.best_checkpoint.BestCheckpoint")
class BestCheckpoint(Settings):
    closed = False

    dirpath: FilePath | None
    filename: Text | None
    auto_insert_metric_name: bool
    monitor: Monitor | None
    mode: Literal["min", "max"]
    save_top_k: Annotated[int, Field(ge=-1), Fix("a whole number of checkpoints, 0 or more, or -1 for all")]
    save_last: bool | Literal["link"] | None
    enable_version_counter: bool


@settings_of("lightning.pytorch.callbacks.LearningRateMonitor")
class LearningRateMonitor(Settings):
    closed = False

    logging_interval: Literal["step", "epoch"] | None


@settings_of("lightning.pytorch.callbacks.EarlyStopping")
class EarlyStopping(Settings):
    closed = False

    monitor: Monitor
    mode: Literal["min", "max"]
    patience: CountOrZero
    check_finite: bool
    min_delta: NotNegative = 0.0


@settings_of("longspan.training.callbacks.lr_finder.FindLearningRate")
class FindLearningRate(Settings):
    min_lr: Positive
    max_lr: Positive
    num_training_steps: whole(20)  # type: ignore[valid-type]
    early_stop_threshold: Positive | None

    def problem(self) -> tuple[str, str] | None:
        return None if self.min_lr < self.max_lr else ("max_lr", "must be above callbacks.lr_finder.min_lr")


@settings_of("longspan.training.callbacks.averaging.AveragedWeights")
class AveragedWeights(Settings):
    closed = False

    decay: Fraction
    update_every_n_steps: Count
    warm_up: bool


@settings_of("longspan.training.callbacks.progress.progress_bar")
class Progress(Settings):
    style: Literal["auto", "rich", "plain"]
    interval: Positive = 5.0


@settings_of("longspan.cost.measured.MeasuredCost")
class MeasuredCost(Settings):
    warmup_steps: CountOrZero
    every_n_steps: Count
    energy: bool
    attention_steps: CountOrZero


@settings_of("longspan.training.callbacks.pattern_sketch.PatternSketch")
class PatternSketch(Settings):
    cells: whole(1, 4096)  # type: ignore[valid-type]
    patterns: CountOrZero


@settings_of("lightning.pytorch.loggers.CSVLogger")
class CsvLogger(Settings):
    closed = False

    save_dir: FilePath
    name: str | None
    version: Annotated[int | str | None, Fix("a text or null")]
    flush_logs_every_n_steps: Count


@settings_of("lightning.pytorch.loggers.TensorBoardLogger")
class TensorBoardLogger(Settings):
    closed = False

    save_dir: FilePath
    name: str | None
    version: Annotated[int | str | None, Fix("a text or null")]
    default_hp_metric: bool


@settings_of("longspan.records.mlflow_logger")
class MlflowLogger(Settings):
    closed = False

    save_dir: FilePath
    tracking_uri: Text | None
    experiment_name: Name
    run_name: Name | None
    tags: dict[str, Any] | None
    run_id: Name | None


@settings_of("longspan.records.wandb_logger")
class WandbLogger(Settings):
    closed = False

    save_dir: FilePath
    mode: Literal["offline", "online", "disabled"]
    project: Name
    entity: Name | None
    name: Name | None
    group: Name | None
    tags: Annotated[list[Text], Fix("a list of texts, such as [trial]")]
    notes: Text | None
    id: Name | None

"""Records as runs leave them, for tests of what is made from records."""

from datetime import UTC, datetime, timedelta

from longspan.records import Accuracy, Measure, Record

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
_minute = iter(range(10**6))


def leave(
    folder, name, variant="full", seed=0, value=0.5, status="complete", cost=100, data="text", metric="accuracy", **settings
):
    """Write a record as a run would; `settings` are dotted config keys with __ for the dot."""
    config = {
        "seed": seed,
        "output_dir": f"outputs/{name}",
        "attention_name": variant,
        "attention": {"_target_": f"longspan.attention.{variant}"},
        "data": {"_target_": f"longspan.data.{data}"},
        "task": {"_target_": "longspan.tasks.SequenceClassification"},
        "optimizer": {"lr": 1e-3},
        "logger": {"wandb": {"id": name}},
    }
    for key, setting in settings.items():
        group, name_of = key.split("__")
        config.setdefault(group, {})[name_of] = setting
    record = Record(
        status=status,
        error=None if status == "complete" else f"{status} it is",
        config=config,
        command=f"python train.py attention={variant} seed={seed}",
        seed=seed,
        started=BEGUN + timedelta(minutes=next(_minute)),
        variant=variant,
        accuracy={metric: Accuracy(value=value, higher_is_better=True, baseline=0.4, split="test")},
        cost={"total_flops": Measure(value=cost, unit="FLOP")},
    )
    return record.save(folder / name / "record.json")

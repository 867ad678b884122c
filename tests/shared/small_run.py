"""A run of one step of a small model, for tests that need a checkpoint."""

from pathlib import Path

CONF = Path(__file__).parents[2] / "conf"
SMALL = (
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "data.max_length=64",
    "data.batch_size=2",
    "data.max_train_windows=4",
    "data.max_validation_windows=2",
    "data.max_test_windows=2",
    "attention=local",
    "attention.window=16",
    "logger=none",
    "trainer.max_steps=1",
    "trainer.val_check_interval=1",
    "test=false",
    "callbacks.pattern=null",
    "callbacks.cost=null",
)


def small_run(folder: Path) -> Path:
    """Trains in the folder and returns the checkpoint."""
    from longspan.config.compose import config_for
    from longspan.training.run import run

    run(config_for(SMALL, folder, CONF))
    return folder / "checkpoints" / "last.ckpt"

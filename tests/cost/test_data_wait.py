"""Waiting for data: a loader's share of the training time, exact on a clock that the loader and the steps turn."""

import time

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from tiny_run import BATCH, LENGTH, REAL_LENGTH, TinyData, TinyTask, tiny_trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset

from longspan.cost import data_wait
from longspan.cost.measured import MeasuredCost

NO_VALIDATION = {"max_steps": 10, "val_check_interval": None, "limit_val_batches": 0, "num_sanity_val_steps": 0}


class Clock:
    """Stands still unless it is turned."""

    now = 0.0

    def __call__(self):
        return self.now

    def turn(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    turned = Clock()
    monkeypatch.setattr(data_wait, "perf_counter", turned)
    return turned


class Rows(Dataset):
    """40 rows, each of which takes `seconds` to read, by `wait`."""

    def __init__(self, seconds, wait):
        self.seconds, self.wait = seconds, wait

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index >= 40:
            raise IndexError
        if self.seconds:
            self.wait(self.seconds)
        return {"tokens": torch.arange(LENGTH), "lengths": torch.tensor(REAL_LENGTH)}


class Stream(IterableDataset):
    """The same of unknown length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Data(TinyData):
    """Batches that take `seconds` each; the same for validation."""

    def __init__(self, seconds, wait=time.sleep, workers=0, stream=False):
        super().__init__()
        rows = Rows(seconds / BATCH, wait)
        self.loader = DataLoader(Stream(rows) if stream else rows, batch_size=BATCH, num_workers=workers)

    def train_dataloader(self):
        return self.loader

    val_dataloader = train_dataloader


class Task(TinyTask):
    """Steps of `seconds`, the first two ten times that; validation of a hundred times that."""

    def __init__(self, seconds, wait=time.sleep):
        super().__init__()
        self.seconds, self.wait = seconds, wait

    def training_step(self, batch, index):
        self.wait(self.seconds * (10 if self.global_step < 2 else 1))
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        self.wait(100 * self.seconds)
        super().validation_step(batch, index)


class SlowCheckpoints(ModelCheckpoint):
    """Saves after every third step and every validation, and takes its time for it."""

    def __init__(self, folder, clock):
        super().__init__(folder, every_n_train_steps=3, save_on_train_epoch_end=False)
        self.clock = clock

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        self.clock.turn(1000)


def costs_of(meter):
    return {name: value for name, (value, _) in meter.costs().items()}


def fitted(folder, meter, task, data, callbacks=(), **settings):
    trainer = tiny_trainer(folder, [meter, *callbacks], **settings)
    trainer.fit(task, data)
    return costs_of(meter)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"val_check_interval": 2},
        {"accumulate_grad_batches": 3, "val_check_interval": None, "max_steps": 8},
        {"max_steps": 37},  # epochs end in between
    ],
    ids=["plain", "validation", "accumulation", "epochs"],
)
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_the_share_is_exact(tmp_path, clock, settings, every, stream):
    meter = MeasuredCost(warmup_steps=2, every_n_steps=every)
    data = Data(3.0, clock.turn, stream=stream)
    settings = {**settings, "enable_checkpointing": True}
    costs = fitted(tmp_path, meter, Task(1.0, clock.turn), data, [SlowCheckpoints(tmp_path, clock)], **settings)
    if stream:  # one batch ahead: the first step of an epoch waits for two, the last for none
        assert costs["data_time_share"] == pytest.approx(0.75, abs=0.02)
        return
    assert costs["data_time_share"] == pytest.approx(0.75)
    batches = settings.get("accumulate_grad_batches", 1)
    assert costs["data_time"] == pytest.approx(3000 * batches)


def test_a_loader_that_takes_no_time_has_no_share(tmp_path, clock):
    costs = fitted(tmp_path, MeasuredCost(warmup_steps=2), Task(1.0, clock.turn), Data(0.0, clock.turn))
    assert costs["data_time_share"] == costs["data_time"] == 0


def test_all_steps_count_where_one_in_four_waits_for_four(tmp_path, clock):
    """As with four workers and a slow loader; each fourth step alone would see all of the wait, or none."""

    class Bursts(Rows):
        def __getitem__(self, index):
            self.wait(12.0 if index % (4 * BATCH) == 0 else 0.0)
            return super().__getitem__(index)

    data = Data(0.0)
    data.loader = DataLoader(Bursts(0.0, clock.turn), batch_size=BATCH)
    meter = MeasuredCost(warmup_steps=2, every_n_steps=4, attention_steps=0)
    costs = fitted(tmp_path, meter, Task(1.0, clock.turn), data, max_steps=10, val_check_interval=None)
    assert costs["data_time_share"] == pytest.approx(24 / (24 + 8)), "steps 2 to 9, of which 4 and 8 wait"
    assert costs["data_time"] == 0, "of the median step"


def test_a_resumed_run_adds_to_what_was_waited(tmp_path, clock):
    saved = tmp_path / "at10.ckpt"
    trainer = tiny_trainer(tmp_path, [first := MeasuredCost(warmup_steps=2)], max_steps=10)
    trainer.fit(Task(1.0, clock.turn), Data(3.0, clock.turn))
    trainer.save_checkpoint(saved)
    assert costs_of(first)["data_time_share"] == pytest.approx(24 / 32)
    clock.turn(10_000)  # between the runs
    again = MeasuredCost(warmup_steps=2)
    trainer = tiny_trainer(tmp_path, [again], max_steps=20)
    trainer.fit(Task(1.0, clock.turn), Data(1.0, clock.turn), ckpt_path=saved, weights_only=True)
    assert costs_of(again)["data_time_share"] == pytest.approx((24 + 8) / (32 + 16)), "each start's warm-up is left out"
    assert costs_of(again)["data_time"] == pytest.approx(1000), "the median is of this start"


def test_a_checkpoint_from_before_the_figure_is_resumed(tmp_path, clock):
    meter = MeasuredCost()
    state = meter.state_dict()
    for name in ("waited", "trained"):
        del state[name]
    meter.load_state_dict(state)
    assert "data_time_share" not in meter.costs()


def test_ranks_report_the_slowest(clock):
    wait = data_wait.DataWait()
    wait.waited, wait.trained = 1.0, 10.0
    wait.compare_ranks(lambda share: max(share, 0.4))
    assert wait.share() == pytest.approx(0.4)
    assert wait.state_dict() == pytest.approx({"waited": 4.0, "trained": 10.0})
    wait.compare_ranks(lambda share: share)  # now this rank is the slowest
    assert wait.share() == pytest.approx(0.1)


def test_it_is_logged_and_leaves_the_profiler_as_it_was(tmp_path, clock):
    profiler = SimpleProfiler(dirpath=tmp_path, filename="profile")
    logger = CSVLogger(tmp_path, name="csv", version="")
    trainer = tiny_trainer(tmp_path, [MeasuredCost(warmup_steps=2)], logger=logger, profiler=profiler)
    trainer.fit(Task(1.0, clock.turn), Data(3.0, clock.turn))
    header, *rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    place = header.split(",").index("cost/data_time_share")
    assert [float(value) for row in rows if (value := row.split(",")[place])] == pytest.approx([0.75, 0.75])
    assert trainer.profiler is profiler
    assert len(profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]) == 20


def test_an_error_leaves_the_profiler_as_it_was(tmp_path, clock):
    def fail():
        raise ZeroDivisionError

    meter = MeasuredCost(warmup_steps=2)
    trainer = tiny_trainer(tmp_path, [meter])
    before = trainer.profiler
    task = Task(1.0, clock.turn)
    task.at_batch = {7: fail}
    with pytest.raises(ZeroDivisionError):
        trainer.fit(task, Data(3.0, clock.turn))
    assert trainer.profiler is before
    assert costs_of(meter)["data_time_share"] == pytest.approx(0.75)


def test_a_loader_that_sleeps_is_waited_for(tmp_path):
    slow, fast = (
        fitted(tmp_path, MeasuredCost(warmup_steps=2), Task(0.005), Data(seconds), **NO_VALIDATION) for seconds in (0.05, 0.0)
    )
    assert slow["data_time_share"] > 0.5
    assert slow["data_time"] >= 50
    assert fast["data_time_share"] < 0.5 * slow["data_time_share"]


def test_a_worker_reads_while_a_step_runs(tmp_path):
    """20 ms a batch beside steps of 60 ms; and 60 ms a batch beside steps of none, which a worker cannot hide."""
    without = fitted(tmp_path, MeasuredCost(warmup_steps=2), Task(0.06), Data(0.02), **NO_VALIDATION)
    hidden = fitted(tmp_path, MeasuredCost(warmup_steps=2), Task(0.06), Data(0.02, workers=1), **NO_VALIDATION)
    starved = fitted(tmp_path, MeasuredCost(warmup_steps=2), Task(0.0), Data(0.06, workers=1), **NO_VALIDATION)
    assert hidden["data_time_share"] < without["data_time_share"] < 0.5 < starved["data_time_share"]

"""Measured cost: what is counted is exact, what is measured leaves out warm-up and validation."""

import time

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_run import BATCH, LENGTH, REAL_LENGTH, TinyData, TinyModel, TinyTask, tiny_trainer

from longspan.cost.energy import EnergyMeter
from longspan.cost.measured import MeasuredCost
from longspan.cost.memory import PROCESS_UNIT, peak_memory
from longspan.cost.peaks import PEAKS, number_format, peak_flops

A_STEP = 3 * TinyModel().cost(LENGTH).total_flops


def fitted(folder, meter, task=None, **settings):
    trainer = tiny_trainer(folder, [meter], **settings)
    trainer.fit(task or TinyTask(), TinyData())
    return {name: value for name, (value, _) in meter.costs().items()}


def test_counted_figures_are_exact(tmp_path):
    costs = fitted(tmp_path, MeasuredCost(warmup_steps=2))
    stated = TinyModel().cost(LENGTH)
    assert costs["live_pairs"] == stated.live_pairs
    assert costs["visited_pairs"] == stated.visited_pairs
    assert costs["density"] == stated.live_pairs / (2 * 1 * LENGTH**2)
    assert costs["attention_flops"] == stated.attention_flops
    assert costs["attention_flops_live"] == stated.attention_flops_live
    assert costs["attention_share"] == stated.attention_flops / stated.total_flops
    assert costs["parameters"] == 2
    assert costs["flops_per_step"] == BATCH * A_STEP
    assert costs["total_flops"] == 20 * BATCH * A_STEP
    assert costs["total_flops_live"] == 20 * BATCH * 3 * stated.total_flops_live
    assert costs["tokens"] == 20 * BATCH * REAL_LENGTH, "padding is no token"
    assert "mfu" not in costs and "energy" not in costs, "not on a CPU"


def test_accumulated_batches_are_one_step(tmp_path):
    meter = MeasuredCost(warmup_steps=0)
    costs = fitted(tmp_path, meter, max_steps=4, accumulate_grad_batches=3, limit_train_batches=9, val_check_interval=None)
    assert costs["flops_per_step"] == 3 * BATCH * A_STEP
    assert costs["total_flops"] == 12 * BATCH * A_STEP
    assert len(meter._step_seconds) == 4


class Sleeps(TinyTask):
    """20 ms a step, the first two far slower, validation slower still."""

    def training_step(self, batch, index):
        time.sleep(0.3 if self.trainer.global_step < 2 else 0.02)
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        time.sleep(0.2)
        super().validation_step(batch, index)


def test_the_median_leaves_out_warm_up_and_validation(tmp_path):
    costs = fitted(tmp_path, MeasuredCost(warmup_steps=2), Sleeps(), max_steps=10, val_check_interval=2, limit_train_batches=10)
    assert 20 <= costs["step_time"] < 80
    speed = BATCH * REAL_LENGTH / (costs["step_time"] / 1000)
    assert costs["tokens_per_second"] == pytest.approx(speed, rel=0.05)  # both are medians
    assert costs["data_time"] < 20


def test_a_run_shorter_than_its_warm_up_has_no_time(tmp_path):
    costs = fitted(tmp_path, MeasuredCost(warmup_steps=50), max_steps=3, val_check_interval=None)
    assert "step_time" not in costs and "tokens_per_second" not in costs
    assert costs["total_flops"] == 3 * BATCH * A_STEP


def test_only_each_nth_step_is_measured(tmp_path):
    meter = MeasuredCost(warmup_steps=2, every_n_steps=4)
    fitted(tmp_path, meter)
    assert len(meter._step_seconds) == 5  # steps 2, 6, 10, 14, 18


def test_one_row_holds_accuracy_and_cost(tmp_path):
    logger = CSVLogger(tmp_path, name="csv", version="")
    fitted(tmp_path, MeasuredCost(warmup_steps=2), logger=logger)
    header, *rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    place = {name: columns.index(name) for name in ("accuracy/accuracy", "cost/total_flops", "cost/density", "step")}
    filled = [row.split(",") for row in rows if row.split(",")[place["accuracy/accuracy"]]]
    assert [int(row[place["step"]]) for row in filled] == [10, 20]
    assert [float(row[place["cost/total_flops"]]) for row in filled] == [10 * BATCH * A_STEP, 20 * BATCH * A_STEP]


def test_a_model_that_states_nothing_still_has_times(tmp_path):
    class Silent(TinyTask):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.ModuleDict({"weight": torch.nn.Linear(1, 1)})

        def training_step(self, batch, index):
            return self.model["weight"](batch["tokens"].float()[..., None]).pow(2).mean()

    costs = fitted(tmp_path, MeasuredCost(warmup_steps=2), Silent())
    assert costs["step_time"] > 0
    assert "total_flops" not in costs and "density" not in costs


def test_it_costs_the_run_nothing_when_an_error_ends_it(tmp_path):
    def fail():
        raise ZeroDivisionError

    meter = MeasuredCost(warmup_steps=2)
    with pytest.raises(ZeroDivisionError):
        fitted(tmp_path, meter, TinyTask(at_batch={7: fail}))
    costs = meter.costs()
    assert costs["total_flops"][0] == 7 * BATCH * A_STEP
    assert costs["peak_memory"][0] > 0


def test_peak_memory_says_whose_it_is():
    value, unit = peak_memory(torch.device("cpu"))
    assert unit == PROCESS_UNIT
    assert 50 < value < 1e6, "MiB, not KiB or bytes"


@pytest.mark.parametrize(("name", "value"), [("warmup_steps", -1), ("every_n_steps", 0)])
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        MeasuredCost(**{name: value})


@pytest.mark.parametrize(
    ("precision", "matmul", "expected"),
    [
        ("bf16-mixed", "highest", "bf16"),
        ("bf16-true", "high", "bf16"),
        ("16-mixed", "highest", "fp16"),
        ("32-true", "highest", "fp32"),
        ("32-true", "high", "tf32"),
        ("64-true", "highest", None),
    ],
)
def test_number_formats(precision, matmul, expected):
    assert number_format(precision, matmul) == expected


def test_an_unknown_gpu_has_no_peak():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == pytest.approx(989.4e12)
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16") is None
    assert peak_flops("NVIDIA H100 80GB HBM3", None) is None
    assert peak_flops("Tesla T4", "bf16") is None, "it has no bfloat16 units"
    assert all(value > 0 for formats in PEAKS.values() for value in formats.values())


def test_energy_adds_up_spans_of_the_counter():
    class Counter:
        NVMLError = RuntimeError

        def __init__(self):
            self.readings = iter([1000, 4000, 10_000, 10_500])

        def nvmlDeviceGetTotalEnergyConsumption(self, handle):
            return next(self.readings)

    meter = EnergyMeter()
    meter.start()
    meter.stop()
    assert meter.joules is None, "no counter, no figure"
    meter._nvml = Counter()
    meter.stop()  # no span begun: reads, adds nothing
    assert meter.joules is None
    meter._nvml = Counter()
    for _ in range(2):
        meter.start()
        meter.stop()
    assert meter.joules == 3.5

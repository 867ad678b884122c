"""A run that stops anywhere and is resumed sees the batches of an uninterrupted one; ranks share an epoch's order."""

import logging

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from watcher import Watcher

from longspan.config.errors import CheckpointError
from longspan.data import TextDataModule
from longspan.data.loader import EvaluationSampler, EvenBatches, ResumableLoader, TrainSampler

STEPS = 13  # of epochs of 5 batches


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(33 + (n * 7919 + n // 13) % 90) for n in range(700)))
    return str(path)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")


def fit(texts, folder, steps, checkpoint=None, workers=0, save=None, **trainer):
    watcher = Watcher()
    data = TextDataModule(path=texts, max_length=32, batch_size=4, num_workers=workers, seed=3)
    callbacks = [save] if save else []
    runner = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=bool(callbacks),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **trainer,
    )
    runner.fit(watcher, data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    return watcher.seen, runner


@pytest.mark.parametrize(
    "trainer",
    [{}, {"val_check_interval": 2}, {"limit_train_batches": 3}, {"accumulate_grad_batches": 2}],
    ids=lambda trainer: next(iter(trainer), "plain"),
)
def test_stopped_by_max_steps_and_resumed(texts, tmp_path, trainer):
    whole, _ = fit(texts, tmp_path, STEPS, **trainer)
    assert len(whole) >= STEPS
    for stop in (1, 3, 5, 6, 10):
        first, runner = fit(texts, tmp_path, stop, **trainer)
        runner.save_checkpoint(tmp_path / "stop.ckpt")
        second, _ = fit(texts, tmp_path, STEPS, str(tmp_path / "stop.ckpt"), **trainer)
        assert first + second == whole, stop


@pytest.mark.parametrize("every", [2, 5, None])
def test_resumed_from_a_checkpoint_of_a_longer_run(texts, tmp_path, every):
    save = ModelCheckpoint(tmp_path / "kept", "{step}", save_top_k=-1, every_n_train_steps=every)
    whole, _ = fit(texts, tmp_path, STEPS, save=save)
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) >= 2
    for file in kept:
        rest, _ = fit(texts, tmp_path, STEPS, str(file))
        assert rest == whole[int(file.stem.split("=")[1]) :], file.name


@pytest.mark.slow
def test_workers_that_fetched_ahead_change_nothing(texts, tmp_path):
    whole, _ = fit(texts, tmp_path, 7)
    first, runner = fit(texts, tmp_path, 3, workers=1)
    runner.save_checkpoint(tmp_path / "stop.ckpt")
    second, _ = fit(texts, tmp_path, 7, str(tmp_path / "stop.ckpt"), workers=1)
    assert first + second == whole


def test_other_data_or_another_seed_is_refused():
    def loader(windows, seed):
        data = list(range(windows))
        return ResumableLoader(data, batch_size=2, sampler=TrainSampler(data, seed))

    state = loader(10, 0).state_dict()
    loader(10, 0).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"data\.seed 0, this one has 1"):
        loader(10, 1).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"training windows 10, this one has 11"):
        loader(11, 0).load_state_dict(state)


def test_the_loader_leaves_the_global_random_state_alone(texts):
    data = TextDataModule(path=texts, max_length=32, batch_size=4)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        list(loader)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_an_epoch(world):
    data = list(range(20))
    loaders = [ResumableLoader(data, batch_size=2, sampler=TrainSampler(data, 0, rank, world)) for rank in range(world)]
    orders = []
    for _ in range(2):
        batches = [[batch.tolist() for batch in loader] for loader in loaders]
        assert len({len(rank) for rank in batches}) == 1  # ranks take equally many steps
        dealt = [index for rank in batches for batch in rank for index in batch]
        assert set(dealt) == set(data) and len(dealt) < len(data) + world
        orders.append(batches)
    assert orders[0] != orders[1]
    assert sorted(i for rank in range(world) for i in EvaluationSampler(data, rank, world)) == data


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("size", [4, 5, 6, 7, 11, 24, 25])
def test_ranks_evaluate_equally_many_batches_and_every_item_once(size, world, batch_size):
    data = list(range(size))
    shares = [list(EvenBatches(data, batch_size, rank, world)) for rank in range(world)]
    assert sorted(item for share in shares for batch in share for item in batch) == data
    assert (
        len({len(share) for share in shares}) == 1 == len({len(EvenBatches(data, batch_size, r, world)) for r in range(world)})
    )
    assert all(1 <= len(batch) <= max(batch_size, 2) for share in shares for batch in share)


@pytest.mark.parametrize("stop", [1, 3])
def test_every_rank_resumes_from_the_state_of_one(stop):
    data = list(range(21))
    make = lambda rank: ResumableLoader(data, batch_size=2, sampler=TrainSampler(data, 5, rank, 2))  # noqa: E731
    first = make(0)
    passing = iter(first)
    for _ in range(stop):
        next(passing)
    for rank in range(2):
        whole = [batch.tolist() for batch in make(rank)]
        resumed = make(rank)
        resumed.load_state_dict(first.state_dict())
        assert [batch.tolist() for batch in resumed] == whole[stop:]
        assert [batch.tolist() for batch in resumed] != whole  # and then comes the next epoch

"""Averaged weights: what is tested is what the checkpoint holds, and a resumed run goes on from the raw ones."""

import torch
from tiny_run import TinyData, TinyTask, tiny_trainer

from longspan.training.callbacks.averaging import AveragedWeights
from longspan.training.callbacks.best_checkpoint import BestCheckpoint


class Drifts(TinyTask):
    """Each step adds 1 to the only weight that counts; validation and test report what they see."""

    def training_step(self, batch, index):
        return -self.model.weight.bias.sum()

    def validation_step(self, batch, index):
        self.log("val/accuracy", self.model.weight.bias.sum())

    def test_step(self, batch, index):
        self.log("test/accuracy", self.model.weight.bias.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def start() -> Drifts:
    task = Drifts()
    torch.nn.init.zeros_(task.model.weight.bias)
    return task


def trainer_for(folder, steps):
    keep = BestCheckpoint(dirpath=folder, filename="best", save_last=True, enable_version_counter=False)
    # decay 0.5: 1, 1.5, 2.25, 3.125, ... behind 1, 2, 3, 4, ...
    return tiny_trainer(
        folder,
        [AveragedWeights(decay=0.5, warm_up=False), keep],
        enable_checkpointing=True,
        max_steps=steps,
        val_check_interval=2,
        num_sanity_val_steps=0,
    )


def bias(state):
    return float(state["model.weight.bias"])


def test_the_test_is_of_the_checkpoint_s_weights(tmp_path):
    trainer = trainer_for(tmp_path, 4)
    trainer.fit(start(), TinyData())
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert bias(saved["state_dict"]) == 3.125
    assert bias(saved["current_model_state"]) == 4.0
    [figures] = trainer.test(start(), TinyData(), ckpt_path=tmp_path / "best.ckpt", verbose=False)
    assert figures["test/accuracy"] == 3.125
    alone = tiny_trainer(tmp_path, [])  # as an evaluation in another process does it
    [again] = alone.test(start(), TinyData(), ckpt_path=tmp_path / "best.ckpt", verbose=False)
    assert again == figures


def test_the_decay_rises_so_that_the_start_is_soon_forgotten(tmp_path):
    task = start()
    tiny_trainer(tmp_path, [AveragedWeights()], max_steps=60, num_sanity_val_steps=0).fit(task, TinyData())
    expected = 1.0
    for updates in range(1, 60):
        weight = min(0.999, (1 + updates) / (10 + updates))
        expected = weight * expected + (1 - weight) * (updates + 1)
    assert abs(float(task.model.weight.bias) - expected) < 1e-3
    assert 50 < expected < 60, "of the last steps, where a fixed decay of 0.999 would give 2.7"


def test_after_training_the_model_is_the_average(tmp_path):
    task = start()
    trainer_for(tmp_path, 4).fit(task, TinyData())
    assert float(task.model.weight.bias) == 3.125


def test_a_training_that_ends_between_validations_can_go_on(tmp_path):
    trainer_for(tmp_path, 3).fit(start(), TinyData())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert bias(saved["current_model_state"]) == 3.0, "the raw weights, not the average"
    resumed = start()
    trainer_for(tmp_path, 4).fit(resumed, TinyData(), ckpt_path=tmp_path / "last.ckpt")
    assert float(resumed.model.weight.bias) == 3.125, "as if it had not stopped"

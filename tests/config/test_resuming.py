"""`ckpt_path=FILE` takes the checkpoint's config, words on top; what Hydra sees of such a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from longspan.config.errors import ConfigError
from longspan.config.overrides import overridden, split_words
from longspan.config.resuming import resumes, words_of_hydra, words_on_top
from longspan.config.values import check_words

CONF = Path(__file__).parents[2] / "conf"
STORED = {
    "name": "addresses-local",
    "attention_name": "local",
    "task_name": "addresses",
    "attention": {"_target_": "longspan.attention.local", "window": 64},
    "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]},
}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["ckpt_path=/r/last.ckpt"], True),
        (["ckpt_path='/r/e=1.ckpt'", "trainer.max_steps=9"], True),
        (["ckpt_path=auto"], False),
        (["ckpt_path=null"], False),
        (["attention=local"], False),
        (["ckpt_path=/r/last.ckpt", "experiment=demo"], False),
        (["-m", "ckpt_path=/r/last.ckpt", "seed=0,1"], False),
    ],
)
def test_when_a_command_line_goes_on_with_a_checkpoint(words, answer):
    assert resumes(words) is answer


def test_hydra_sees_its_own_words():
    words = ["ckpt_path=/r/last.ckpt", "attention.window=64", "hydra.run.dir=/r/2", "+trainer.min_steps=1"]
    assert words_of_hydra(words) == ["ckpt_path=/r/last.ckpt", "hydra.run.dir=/r/2"]
    assert words_on_top(words) == ["attention.window=64", "+trainer.min_steps=1"]


def test_words_on_top_of_a_stored_config():
    config = overridden(STORED, ["attention.window=32", "optimizer.betas=[0.8,0.9]", "+optimizer.eps=1e-6", "name='a=b'"], CONF)
    assert config["attention"]["window"] == 32 and config["optimizer"] == {"lr": 0.1, "betas": [0.8, 0.9], "eps": 1e-6}
    assert config["name"] == "a=b"
    assert "window" not in overridden(STORED, ["~attention.window"], CONF)["attention"]


def test_a_group_is_taken_before_its_keys_as_on_a_command_line():
    assert overridden(STORED, ["attention.window=32", "attention=local"], CONF)["attention"]["window"] == 32


def test_another_attention_is_named_so():
    config = overridden(STORED, ["attention=full"], CONF)
    assert config["attention_name"] == "full" and config["name"] == "addresses-full" and "window" not in config["attention"]


@pytest.mark.parametrize("word", ["data.max_length=abc", "attention.window=0", "seed=-1", "model.heads=[4]"])
def test_a_value_that_nothing_takes_is_told_before_the_checkpoint_is_read(word):
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        check_words([word])


@pytest.mark.parametrize(
    "word",
    ["attention.window=12", "attention.mine=x", "other.key=1", "data.path=a b.txt", "group=null", "trainer=gpu", "data=text"],
)
def test_a_value_that_something_may_take_passes(word):
    check_words([word])


@pytest.mark.parametrize(
    "given", ["checkpoint=/r/x.ckpt", "checkpoint='/r/x.ckpt'", 'checkpoint="/r/x.ckpt"', "checkpoint=/r/lr=1/x.ckpt"]
)
def test_quotes_around_a_scripts_values_are_not_part_of_them(given):
    own, _ = split_words([given], {"checkpoint": "a file"})
    assert own["checkpoint"] == given.partition("=")[2].strip("'\"")


@pytest.mark.parametrize("given", ["--checkpoint=/r/x.ckpt", "--checkpoint", "checkpoint"])
def test_a_scripts_word_with_dashes_or_no_value_is_told_how_it_is_written(given):
    with pytest.raises(ConfigError, match=r"key=value, without dashes[^$]*checkpoint=\.\.\.  a file"):
        split_words([given], {"checkpoint": "a file"})

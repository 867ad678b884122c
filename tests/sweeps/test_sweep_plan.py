"""From a sweep's words to its jobs: names that stay, configs that are checked, slips that are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from longspan.config.command_line import check_command_line, choices_of
from longspan.config.diff import differences
from longspan.config.errors import ConfigError
from longspan.config.written import quoted
from longspan.sweeps.command import checked_words
from longspan.sweeps.engines import gpus_of, slots
from longspan.sweeps.plan import grid_jobs, read_sweep

CONF = Path(__file__).parents[2] / "conf"


def jobs(*words: str):
    return grid_jobs(read_sweep(words, CONF), CONF)


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        jobs(*words)
    return str(caught.value)


def test_every_combination_is_a_run_with_a_folder_of_its_own():
    found = jobs("attention=full,local", "seed=0,1", "trainer.max_steps=3", "sweep.output=out")
    assert [job.overrides for job in found] == [
        ("trainer.max_steps=3", f"attention={attention}", f"seed={seed}") for attention in ("full", "local") for seed in (0, 1)
    ]
    assert [str(job.folder) for job in found] == ["out/full-seed0", "out/full-seed1", "out/local-seed0", "out/local-seed1"]
    assert all(job.config["trainer"]["max_steps"] == 3 for job in found)
    assert len({job.group for job in found}) == 1
    command = found[0].command(Path("train.py"))
    assert command[1:] == [
        "train.py",
        *found[0].overrides,
        "hydra.run.dir=out/full-seed0",
        f"group={found[0].group}",
        "ckpt_path=auto",
    ]


def test_a_grid_that_grows_keeps_the_folders_of_its_runs():
    before = {job.folder: job.config for job in jobs("attention=full,local", "seed=0,1", "sweep.output=out")}
    after = {job.folder: job.config for job in jobs("attention=bigbird,full,local", "seed=2,0,1", "sweep.output=out")}
    assert before.keys() < after.keys() and all(not differences(after[folder], config) for folder, config in before.items())


def test_a_sweep_without_a_name_finds_itself_again():
    first, same, other = (read_sweep(words, CONF) for words in (["seed=0,1"], ["seed=0,1", "sweep.at_once=2"], ["seed=0,2"]))
    assert first.output == same.output != other.output


def test_a_folder_of_ones_own_has_choices_and_sweeps_for_each_run(tmp_path):
    own = tmp_path / "my conf"
    for name, text in {
        "attention/mine.yaml": (CONF / "attention/local.yaml").read_text(),
        "sweep/mine.yaml": "defaults: [default]\nname: mine\ngrid: {attention: [mine, full], seed: [0]}\n",
    }.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(text)
    found = jobs(*checked_words(["--config-dir", str(own), "sweep=mine"]))
    assert [job.name for job in found] == ["mine-seed0", "full-seed0"]
    for job in found:  # as the run itself will read them
        check_command_line(CONF, job.command(Path("train.py"))[2:])
    same = read_sweep(checked_words([f"--config-dir={own}", "attention=mine,full"]), CONF)
    assert same.output == read_sweep(["attention=mine,full"], CONF).output, "where a folder lies names no sweep"
    for words in (
        ["--config-dir", str(tmp_path / "none")],
        ["--config-dir"],
        ["-cd", str(own), "-cd", str(own)],
        ["--multirun"],
    ):
        with pytest.raises(ConfigError, match=words[0] if words[0] == "--multirun" else "give one folder that is there"):
            checked_words(words)


@pytest.mark.parametrize("name", choices_of(CONF, "sweep"))
def test_every_sweep_of_the_project_composes(name):
    settings = read_sweep([f"sweep={name}", "seed=0"], CONF)  # seeds are composed alike
    assert settings.name or name == "default"
    if settings.search is not None:
        return
    for key in settings.grid or [None]:  # each value of a key beside the first of the others: all of them are a minute's work
        grid = {other: values if other == key else values[:1] for other, values in settings.grid.items()}
        assert grid_jobs(replace(settings, grid=grid), CONF)


def test_words_take_the_place_of_the_grids_values_and_settings_of_a_choice_come_along():
    settings = read_sweep(["sweep=demo", "attention=local", "seed=5"], CONF)
    found = grid_jobs(replace(settings, with_choice={"attention=local": ["attention.window=32"], "seed=6": ["no.key=1"]}), CONF)
    assert len(found) == 1 and found[0].config["attention"]["window"] == 32 and found[0].config["seed"] == 5


@pytest.mark.parametrize("space", [" ", ""], ids=["as in a file", "without the space"])
def test_settings_of_a_choice_are_given_on_the_command_line(space):
    words = ["attention=full,local", f"sweep.with_choice={{attention=local:{space}[attention.window=32]}}"]
    full, local = grid_jobs(read_sweep(words, CONF), CONF)
    assert local.config["attention"]["window"] == 32 and "window" not in full.config["attention"]
    kept = read_sweep(["sweep=lra", "sweep.with_choice={experiment=lra_text: [data.path=x]}"], CONF).with_choice
    assert "attention=bigbird" in kept and kept["experiment=lra_text"] == ["data.path=x"]


def test_a_key_that_only_some_runs_have_is_named_with_its_run_and_the_way_to_give_it():
    said = refused("attention=full,local", "attention.window=64")
    assert "keys of attention (full)" in said and "in the run of attention=full" in said and "sweep.with_choice={" in said
    assert "sweep.with_choice={attention=local:" in refused("sweep.with_choice={attention=local: 3}")
    assert "sweep.with_choice={attention=local:" in refused("sweep.with_choice={attention=local")


def test_slips_are_named_before_the_first_run():
    assert "attention=bigbird?" in refused("attention=full,bigbrid")
    assert "sweep=demo?" in refused("sweep=dmo")
    assert "sweep.at_once?" in refused("sweep.atonce=2")
    assert "trainer.max_steps?" in refused("seed=0,1", "trainer.max_step=3")
    assert "key=value" in refused("bigbird")
    assert "sweep.search.space" in refused("optimizer.lr=interval(0.1,1)")
    assert "whole number" in refused("sweep.attempts=0")
    assert "ray" in refused("sweep.engine=rya")
    assert "sweep.devices_a_job=2" in refused("trainer=gpu", "trainer.devices=2")
    assert "with a grid" in refused("sweep=learning_rate", "seed=0,1")
    assert "low" in refused("sweep=learning_rate", "sweep.search.space={optimizer.lr:{low:2,high:1}}")


def test_train_py_does_one_run(capsys):
    with pytest.raises(SystemExit):
        check_command_line(CONF, ["sweep=demo"])
    assert "scripts/sweep.py sweep=NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("devices", "a_job", "at_once", "expected"),
    [
        ((), 1, 2, [(), ()]),
        (("0", "1", "2"), 1, 1, [("0",), ("1",), ("2",)]),
        (("0", "1", "2", "3"), 2, 1, [("0", "1"), ("2", "3")]),
        (("0", "1", "2"), 2, 1, [("0", "1")]),
    ],
)
def test_devices_are_shared_out_without_overlap(devices, a_job, at_once, expected):
    assert slots(devices, a_job, at_once) == expected


def test_more_devices_a_job_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"sweep\.devices_a_job=3"):
        slots(["0", "1"], 3, 1)


def test_visible_gpus_are_those_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    on_gpu, on_cpu = jobs("trainer=gpu"), jobs("seed=0")
    assert gpus_of(read_sweep(["seed=0"], CONF), on_gpu) == ["3", "5"] and gpus_of(read_sweep(["seed=0"], CONF), on_cpu) == []
    assert gpus_of(read_sweep(["sweep.gpus=[1,2]"], CONF), on_cpu) == ["1", "2"]


def test_a_folder_with_signs_of_hydras_grammar_is_one_word():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    path = "a b/it's,x=1/{c}"
    parsed = OverridesParser.create().parse_override(f"hydra.run.dir={quoted(path)}")
    assert parsed.value() == path


def test_the_same_run_elsewhere_is_the_same_run():
    (one,), (other,), (changed,) = (
        jobs("seed=0", "sweep.output=a"),
        jobs("seed=0", "sweep.output=b"),
        jobs("seed=1", "sweep.output=a"),
    )
    assert differences(one.config, other.config) == []
    assert "seed: 0 -> 1" in differences(one.config, changed.config)
    moved = {**one.config, "trainer": {**one.config["trainer"], "devices": 4, "accelerator": "gpu"}}
    assert differences(one.config, moved) == [] and differences(one.config, moved, machine=True)
    later = {**one.config, "model": {**one.config["model"], "new_setting": None}}
    assert differences(one.config, later) == differences(later, one.config) == [], "new in a later version, and not used"
    used = {**one.config, "model": {**one.config["model"], "new_setting": 7}}
    assert differences(one.config, used) == ["model.new_setting: (not there) -> 7"]
    watched = {**one.config, "callbacks": {**one.config["callbacks"], "cost": {"warmup_steps": 9}}}
    assert differences(one.config, watched) == []

"""A wrong word on the command line costs a second and names the right one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from warm_process import run

from longspan.config.command_line import check_command_line, choices_of, composed, groups, jobs
from longspan.config.compose import config_for
from longspan.config.errors import ConfigError
from longspan.config.own_folder import as_typed, with_own_folder

CONF = Path(__file__).parents[1] / "conf"
VARIANTS = {
    "full",
    "local",
    "dilated",
    "strided",
    "fixed",
    "global",
    "random",
    "longformer",
    "bigbird",
    "block_table",
    "per_head",
}


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        composed(CONF, overrides)
    return str(caught.value)


def test_an_unknown_variant_names_the_variants_and_the_nearest():
    text = message("attention=bigbrid")
    assert "attention=bigbird?" in text.splitlines()[0]
    assert set(text.splitlines()[1].split(": ")[1].split(", ")) >= VARIANTS


def test_an_unknown_key_names_the_keys_of_its_node():
    text = message("trainer.max_step=3")
    assert "trainer.max_step is not a config key. Did you mean trainer.max_steps?" in text
    assert "accumulate_grad_batches" in text


def test_an_unknown_group_names_the_groups():
    text = message("attentoin=bigbird")
    assert "Did you mean attention?" in text
    assert all(group in text for group in ("attention", "data", "model", "task", "trainer"))


def test_a_key_at_the_wrong_place_is_found():
    assert "Did you mean trainer.max_steps?" in message("model.max_steps=3")


@pytest.mark.parametrize("override", ["trainer.max_steps", "trainer.max_steps=[1", "~trainer.no_such", "attention=full,local"])
def test_other_slips_are_short(override):
    text = message(override)
    assert 0 < len(text.splitlines()) <= 6 and "Traceback" not in text


def test_exit_code_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as caught:
        check_command_line(CONF, ["attention=bigbrid"])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("ConfigError: attention=bigbrid") and "Traceback" not in printed


def test_a_sweep_is_checked_to_its_last_job(capsys):
    with pytest.raises(SystemExit):
        check_command_line(CONF, ["-m", "attention=full,local,bigbrid"])
    assert "bigbrid" in capsys.readouterr().err


def test_a_sweep_expands_to_its_jobs():
    assert list(jobs(["attention=full,local", "seed=1,2"], multirun=True)) == [
        ["attention=full", "seed=1"],
        ["attention=full", "seed=2"],
        ["attention=local", "seed=1"],
        ["attention=local", "seed=2"],
    ]
    assert list(jobs(["seed=range(1,3)", "optimizer.lr=interval(0,1)"], multirun=True)) == [["seed=1"], ["seed=2"]]


@pytest.mark.parametrize("devices", ["2", "[0,1]", "-1", "auto"])
def test_a_sweep_over_several_devices_in_one_process_is_refused(devices, capsys):
    with pytest.raises(SystemExit) as caught:
        check_command_line(CONF, ["-m", "attention=full,local", f"trainer.devices={devices}"])
    assert caught.value.code == 2
    assert "scripts/sweep.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["hydra.mode=MULTIRUN", "trainer.devices=2"], ["--config-dir", "{own}", "-m", "seed=0,1", "trainer.num_nodes=2"]]
)
def test_such_a_sweep_is_refused_however_it_is_asked_for(words, tmp_path):
    """Past the command line's check, by the job itself: nothing is trained, and no rank is started."""
    words = [word.format(own=tmp_path) for word in words]
    done = run(CONF.parent / "train.py", *words, f"hydra.sweep.dir={tmp_path}/sweep", cwd=tmp_path)
    assert done.returncode == 2 and "scripts/sweep.py" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("record.json"))


def test_a_new_run_does_not_train_over_an_earlier_one(tmp_path, capsys, monkeypatch):
    """Refused before Hydra writes anything, unless `ckpt_path` says what the checkpoints of the folder are for."""
    for run_folder in ("mine", "sweep/1-full"):
        (tmp_path / run_folder / "checkpoints").mkdir(parents=True)
        (tmp_path / run_folder / "checkpoints" / "last.ckpt").touch()
    single, sweep = [f"hydra.run.dir={tmp_path}/mine"], ["-m", "attention=local,full", f"hydra.sweep.dir={tmp_path}/sweep"]
    for words, key, folder in ((single, "hydra.run.dir", "mine"), (sweep, "hydra.sweep.dir", "sweep/1-full")):
        with pytest.raises(SystemExit) as caught:
            check_command_line(CONF, words)
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(f"ConfigError: {key}: {tmp_path}/{folder} holds") and "ckpt_path=auto" in said
        assert f"ckpt_path={tmp_path}/{folder}/checkpoints/last.ckpt" in said
        for asked in ("auto", "null"):
            check_command_line(CONF, [*words, f"ckpt_path={asked}"])
    check_command_line(CONF, [f"hydra.run.dir={tmp_path}/other"])
    check_command_line(CONF, ["-m", "attention=full,local", sweep[-1]])  # 1-full is of no job of this one
    check_command_line(CONF, ["-m", "seed=0,1", sweep[-1], "hydra.sweep.subdir=${seed}"])
    monkeypatch.setenv("LOCAL_RANK", "1")  # the run's first rank has its checkpoint there by now
    check_command_line(CONF, single)


def test_a_folder_of_ones_own_comes_before_the_projects(tmp_path, capsys):
    (tmp_path / "attention").mkdir()
    text = (CONF / "attention/local.yaml").read_text()
    for name, window in (("local", 7), ("mine", 9)):
        (tmp_path / "attention" / f"{name}.yaml").write_text(re.sub(r"(?m)^window: .*$", f"window: {window}", text))
    own = ["--config-dir", str(tmp_path)]
    for attention, window in (("local", 7), ("mine", 9)):
        assert composed(CONF, with_own_folder([*own, f"attention={attention}"])).attention.window == window
    assert as_typed(with_own_folder([*own, "seed=1"])) == [*own, "seed=1"], "as the record's command has it"
    assert composed(CONF, ["attention=local"]).attention.window != 7, "another command does not know it"
    check_command_line(CONF, [*own, "-m", "attention=mine,full"])
    for word, said in (("attention=mime", "attention=mine"), ("attention.windw=3", "attention.window"), ("seed=x", "seed")):
        with pytest.raises(SystemExit):
            check_command_line(CONF, [*own, "attention=mine", word])
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        check_command_line(CONF, [*own, "hydra.searchpath=[file:///other]"])
    assert f"give the second alone, hydra.searchpath=[file://{tmp_path},file:///other]" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        check_command_line(CONF, ["--config-dir", str(tmp_path / "none")])
    assert "give one folder that is there" in capsys.readouterr().err


def test_a_pattern_is_a_value_on_the_command_line_and_in_a_program(tmp_path):
    words = ["experiment=dates", "model.cross_attention=Local(8)"]
    check_command_line(CONF, words)
    assert config_for(words, tmp_path, CONF)["model"]["cross_attention"] == "Local(8)"


def test_the_variants_are_there():
    assert set(choices_of(CONF, "attention")) >= VARIANTS


CHOICES = {group: choices_of(CONF, group) for group in groups(CONF) if group != "experiment"}


@pytest.mark.parametrize("number", range(max(map(len, CHOICES.values()))))
def test_every_choice_composes(number):
    """The choices of this number in all groups at once; `test_experiments.py` runs every experiment."""
    composed(CONF, [f"{group}={choices[number]}" for group, choices in CHOICES.items() if number < len(choices)])


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_file_says_what_it_is_and_how_to_use_it(file):
    head = [line for line in file.read_text().splitlines()[:4] if line.startswith("#")]
    assert head and any("python " in line for line in head), f"{file}: the first lines name the command that uses it"

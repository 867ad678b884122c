"""The targets that a stored config may name are those of conf/, group by group."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from longspan.config.errors import CheckpointError
from longspan.config.from_checkpoint import TARGETS, check_checkpoint_config, literal

CONF = Path(__file__).parents[2] / "conf"
GOOD = {
    "model": {"_target_": "longspan.models.transformer", "_partial_": True, "layers": 2, "width": 32, "heads": 2},
    "attention": {"_target_": "longspan.attention.local", "_partial_": True, "window": 16},
    "data": {"_target_": "longspan.data.TextDataModule", "max_length": 64, "batch_size": 2},
    "task": {"_target_": "longspan.tasks.LanguageModelling", "_partial_": True},
    "trainer": {"_target_": "lightning.pytorch.Trainer"},
}


def _targets(node, group):
    if isinstance(node, dict):
        if "_target_" in node:
            yield group, node["_target_"]
        for key, value in node.items():
            yield from _targets(value, key if group is None else group)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value, group)


def test_the_list_is_what_conf_names():
    named: dict[str, set[str]] = {}
    for file in CONF.rglob("*.yaml"):
        text = file.read_text()
        folder = file.relative_to(CONF).parts[0]
        group = None if folder == "config.yaml" or "@package _global_" in text.splitlines()[0] else folder
        for where, target in _targets(yaml.safe_load(text), group):
            named.setdefault(where, set()).add(target)
    assert named == {group: set(names) for group, names in TARGETS.items()}, "conf/ and config/from_checkpoint.py differ"


def with_value(path: str, value):
    config = {group: dict(node) for group, node in GOOD.items()}
    group, _, key = path.partition(".")
    if key:
        config[group][key] = value
    else:
        config[group] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("optimizer", {"_target_": "sympy.sympify", "a": "1"}, "sympy.sympify"),
        ("optimizer", {"lr": {"deep": [{"_target_": "os.system"}]}}, "os.system"),
        ("callbacks", {"x": {"_target_": "asyncio.create_subprocess_shell"}}, "create_subprocess_shell"),
        ("data._target_", "longspan.records.wandb_logger", "conf/data/"),  # allowed as a logger alone
        ("attention._target_", "longspan.attention.locale", "Did you mean longspan.attention.local?"),
        ("model._target_", ["os.system"], "no name"),
        ("model._args_", [1], "_args_"),
        ("surprise", {"_target_": "longspan.models.transformer"}, "conf/surprise/"),
        ("model.layers", 10**7, "model.layers=10000000"),
        ("model.layers", "many", "no whole number"),
        ("data.max_length", 10**12, "data.max_length"),
        ("data.batch_size", 10**9, "data.batch_size"),
        ("attention.window", float("nan"), "attention.window"),
        ("attention.global_positions", list(range(200_001)), "100,000 values"),
        ("model", None, "without model"),
        ("name", object(), "object"),
    ],
)
def test_what_is_refused(path, value, says):
    with pytest.raises(CheckpointError, match=r"checkpoint=x") as caught:
        check_checkpoint_config(with_value(path, value), "checkpoint=x")
    assert says in str(caught.value)


def test_deep_nesting_is_refused():
    node: dict = {}
    for _ in range(5000):
        node = {"a": node}
    with pytest.raises(CheckpointError, match="nested"):
        check_checkpoint_config(with_value("extra", node), "checkpoint=x")


def test_a_trusted_module_is_taken(monkeypatch):
    config = with_value("optimizer", {"_target_": "mine.optimizers.Lion", "lr": 1.0})
    check_checkpoint_config(GOOD, "checkpoint=x")
    with pytest.raises(CheckpointError, match=r"LONGSPAN_TRUST=mine\.optimizers"):
        check_checkpoint_config(config, "checkpoint=x")
    monkeypatch.setenv("LONGSPAN_TRUST", "other, mine")
    check_checkpoint_config(config, "checkpoint=x")
    monkeypatch.setenv("LONGSPAN_TRUST", "min")  # no module, a part of its name
    with pytest.raises(CheckpointError):
        check_checkpoint_config(config, "checkpoint=x")


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", r"a\${x}", r"\\${x}", "x${a}y${b}", "$${a}", "a${b", r"c:\d ${e}", "${a${b}}"]
)
def test_text_stays_text(text):
    from omegaconf import OmegaConf

    assert OmegaConf.to_container(OmegaConf.create(literal({"a": [text]})), resolve=True) == {"a": [text]}

"""Every key that conf/ has is typed: a new one gets its kind in `longspan.config.schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from longspan.config import values
from longspan.config.schema.kinds import BY_TARGET, fix_of
from longspan.config.schema.run import Run
from longspan.config.values import HYDRA_KEYS

CONF = Path(__file__).parents[2] / "conf"
# targets of variants that check their settings themselves, until they are typed
UNTYPED: set[str] = set()


def nodes(node: Any):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from nodes(value)


FILES = sorted(file for file in CONF.rglob("*.yaml") if next(nodes(yaml.safe_load(file.read_text())), None))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_every_key_has_a_kind(file):
    for node in nodes(yaml.safe_load(file.read_text())):
        target = node["_target_"]
        if target in UNTYPED:
            continue
        assert target in BY_TARGET, f"{target} has no class in longspan.config.schema"
        unknown = set(node) - set(BY_TARGET[target].model_fields) - HYDRA_KEYS - {"defaults"}
        assert not unknown, f"{target}: {unknown} have no kind in longspan.config.schema"


def test_the_keys_at_the_top_have_kinds():
    top = yaml.safe_load((CONF / "config.yaml").read_text())
    assert set(top) - {"defaults"} <= set(Run.model_fields)


@pytest.mark.parametrize("settings", [Run, *dict.fromkeys(BY_TARGET.values())], ids=lambda settings: settings.__name__)
def test_every_kind_says_what_to_give(settings):
    for key, field in settings.model_fields.items():
        words = fix_of(values._annotated(field.annotation, field.metadata))
        assert words != "another value" and words.count("null") <= 1, key

"""A checkpoint of the smallest run."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import small_run


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("run"))

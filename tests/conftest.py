"""Settings shared by all tests."""

from __future__ import annotations

import dataclasses
import gc
import io
import lzma
import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from interpreted import import_interpreted

# A busy machine is no fault: no draw has a deadline.
settings.register_profile("longspan", deadline=None)
settings.load_profile("longspan")

CONF = Path(__file__).parents[1] / "conf"
BUNDLED = Path(__file__).parents[1] / "src" / "longspan" / "data" / "bundled"


def _before_others_are_imported() -> None:
    from longspan.training.threads import patient_threads

    patient_threads()  # before torch is loaded
    import torch

    # the tensors here are small, and two processes with two threads each only get in each other's way
    torch.set_num_threads(1)
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.fsync = lambda handle: None  # milliseconds a file, for a loss of power that no test brings about
    _unpack_bundled_data_once()
    _read_config_files_once()
    import_interpreted()


def _unpack_bundled_data_once() -> None:
    """Hundreds of tests read them, a tenth of a second each time."""
    open_file = lzma.open
    unpacked = cache(lambda path: open_file(path).read())

    def open_once(path: Any, *arguments: Any, **settings: Any) -> Any:
        if isinstance(path, Path) and path.parent == BUNDLED:
            return io.BytesIO(unpacked(path))
        return open_file(path, *arguments, **settings)

    lzma.open = open_once


def _read_config_files_once() -> None:
    """A run's config comes from some twenty files, and a thousand are composed: a fifth of that is reading YAML."""
    from hydra.core.plugins import Plugins

    Plugins.instance()  # which loads its modules, though they be loaded
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    load, kept = FileConfigSource.load_config, {}

    def load_once(self: Any, config_path: str) -> Any:
        path = Path(self.path, self._normalize_file_name(config_path))
        if CONF not in path.parents or not path.is_file():
            return load(self, config_path=config_path)
        key = path, path.stat().st_mtime_ns, self.provider
        if key not in kept:
            read = load(self, config_path=config_path)
            kept[key] = read, pickle.dumps((read.config, read.header))
        read, copy = kept[key]
        config, header = pickle.loads(copy)
        return dataclasses.replace(read, config=config, header=header)

    FileConfigSource.load_config = load_once


# Not in pytest_configure: where folders are named, pytest reads their conftest.py before it calls that.
_before_others_are_imported()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n 2`: each process begins with half of the folders, so that what a module's tests share is made once."""
    if config.getoption("dist") != "load":
        return None  # asked for
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is loaded by now stays: collections need not go through it each time


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _hydra_forgets():
    """Hydra and its config are global: a test that composed leaves nothing behind."""
    yield
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()


@pytest.fixture
def sdpa():
    """A maker of attention modules over torch's own dense attention: what models are tested against."""
    import torch
    import torch.nn.functional as F

    from longspan.cost import Cost

    class DenseAttention(torch.nn.Module):
        def __init__(self, *, heads: int, kv_heads: int, head_dim: int, causal: bool, layer: int, max_length: int):
            super().__init__()
            self.heads, self.head_dim, self.causal, self.layer = heads, head_dim, causal, layer

        def forward(self, q, k, v, *, lengths=None, segments=None):
            length = q.shape[2]
            keep = torch.ones(1, 1, length, length, dtype=torch.bool, device=q.device)
            if self.causal:
                keep = keep.tril()
            if lengths is not None:
                keep = keep & (torch.arange(length, device=q.device) < lengths[:, None])[:, None, None]
            if segments is not None:
                keep = keep & (segments[:, None, :, None] == segments[:, None, None])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, enable_gqa=True)

        def cost(self, length: int) -> Cost:
            # torch's counter takes no notice of masks: every pair is computed
            pairs = self.heads * length * length
            return Cost(pairs, pairs, 4 * self.head_dim * pairs, 4 * self.head_dim * pairs)

    return DenseAttention


@pytest.fixture
def train() -> Callable[..., dict[str, Any]]:
    """`train(output_dir, *overrides)`: what train.py does, in this process; returns the config."""

    def run_here(output_dir: Path, *overrides: str) -> dict[str, Any]:
        from longspan.config.compose import config_for
        from longspan.training.run import run

        config = config_for(overrides, output_dir, CONF)
        run(config)
        return config

    return run_here


@pytest.fixture(autouse=True)
def _not_deterministic() -> None:
    """A run of an earlier test, or of a fixture, leaves its `trainer.deterministic` behind."""
    import torch

    torch.use_deterministic_algorithms(False)

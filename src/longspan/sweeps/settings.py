"""The settings of a sweep, as `conf/sweep/*.yaml` states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from longspan.config.errors import ConfigError
from longspan.nearest import did_you_mean, listed, nearest
from longspan.values import is_whole

ENGINES = ("auto", "ray", "local", "slurm")
RETRIABLE = ("failed", "out_of_memory")


@dataclass(frozen=True)
class Search:
    """A search by Optuna in place of a grid.

    Attributes:
        space: by config key, a list of choices or {low, high, log, step} of numbers; whole ones where both ends are.
        trials: how many runs, failed ones counted.
        metric: a validation metric, by its best value in a run; None: the task's own.
        maximise: None: as the task says of its own metric.
        seed: of the sampler.
    """

    space: dict[str, Any] = field(default_factory=dict)
    trials: int = 20
    metric: str | None = None
    maximise: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.space:
            raise ConfigError("sweep.search.space is empty: name config keys, e.g. {optimizer.lr: {low: 1e-4, high: 1e-2}}")
        _whole("search.trials", self.trials)
        if self.metric is not None and self.maximise is None:
            raise ConfigError(f"sweep.search.metric={self.metric} needs sweep.search.maximise=true or false")
        for key, space in self.space.items():
            if isinstance(space, list) and space:
                continue
            known = isinstance(space, dict) and {"low", "high"} <= space.keys() <= {"low", "high", "log", "step"}
            if not known or not space["low"] < space["high"] or (space.get("log") and space["low"] <= 0):
                raise ConfigError(
                    f"sweep.search.space.{key}={space!r}: give a list of choices, or low < high with log: true "
                    "(low above 0) or step"
                )


@dataclass(frozen=True)
class SweepSettings:
    """A sweep; the keys are explained in `conf/sweep/default.yaml`."""

    name: str | None = None
    output: str | None = None
    overrides: tuple[str, ...] = ()
    grid: dict[str, list[Any]] = field(default_factory=dict)
    with_choice: dict[str, list[str]] = field(default_factory=dict)
    search: Search | None = None
    engine: str = "auto"
    gpus: str | list[Any] = "auto"
    devices_a_job: int = 1
    at_once: int = 1
    attempts: int = 3
    retry: tuple[str, ...] = ()
    dry_run: bool = False
    slurm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"sweep.engine={self.engine} is none of {', '.join(ENGINES)}")
        for key in ("devices_a_job", "at_once", "attempts"):
            _whole(key, getattr(self, key))
        for status in self.retry:
            if status not in RETRIABLE:
                raise ConfigError(f"sweep.retry={list(self.retry)}: {status} is none of {', '.join(RETRIABLE)}")
        for key, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"sweep.grid.{key}={values!r} must be a list of values")
            if len({str(value) for value in values}) < len(values):
                raise ConfigError(f"sweep.grid.{key}={values} names a value twice")


def settings_of(node: Mapping[str, Any]) -> SweepSettings:
    """From the plain `sweep` node of a config.

    Raises:
        ConfigError: an unknown key or a value that cannot be used.
    """
    known = {item.name for item in fields(SweepSettings)}
    for key in node:
        if key not in known:
            near = nearest(key, known)
            suggestion = did_you_mean(f"sweep.{near}" if near else None)
            raise ConfigError(f"sweep.{key} is not a key of a sweep.{suggestion}\n  keys: {listed(known)}")
    given = {key: value for key, value in node.items() if value is not None}
    if isinstance(given.get("search"), Mapping):
        try:
            given["search"] = Search(**{str(key): value for key, value in given["search"].items()})
        except TypeError as error:
            raise ConfigError(f"sweep.search: {str(error).rpartition(') ')[2] or error}") from None
    for key in ("overrides", "retry"):
        value = given.get(key, ())
        if isinstance(value, str):
            raise ConfigError(f"sweep.{key}={value} must be a list, e.g. sweep.{key}=[{value}]")
        given[key] = tuple(value)
    return SweepSettings(**given)


def _whole(key: str, value: Any) -> None:
    if not is_whole(value, 1):
        raise ConfigError(f"sweep.{key}={value} must be a whole number, 1 or more")

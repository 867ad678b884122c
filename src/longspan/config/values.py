"""Checks the type and range of every value of a config, before torch is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from longspan.config.errors import ConfigError
from longspan.config.from_checkpoint import TARGETS
from longspan.config.schema import attention, data, model, synthetic  # noqa: F401  (they register their targets)
from longspan.config.schema.kinds import BY_TARGET, Settings, fix_of
from longspan.config.schema.run import Run
from longspan.config.written import parsed_value, shown
from longspan.nearest import did_you_mean, listed, nearest

MOST_TOLD = 5
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


def check_values(config: Mapping[str, Any]) -> None:
    """Looks at every key that conf/ has; nodes with a `_target_` of the user's own are left to that target.

    Args:
        config: plain and resolved; what could not be resolved is left out.

    Raises:
        ConfigError: names each wrong key, its value and what to give.
    """
    wrong = [*wrong_values(config, Run, "")]
    for path, node in _nodes(config, ""):
        settings = BY_TARGET.get(str(node.get("_target_")))
        if settings is not None:
            wrong.extend(wrong_values(node, settings, path))
    # `data.seed` follows `seed`: one mistake is reported once, where it was typed
    wrong = list({_typed(text): text for text in reversed(wrong)}.values())[::-1]
    if wrong:
        more = f"\n... and {len(wrong) - MOST_TOLD} more" if len(wrong) > MOST_TOLD else ""
        raise ConfigError("\n".join(wrong[:MOST_TOLD]) + more)


def _typed(text: str) -> str:
    """The message as the user typed the key: ``seed=-1`` of ``data.seed=-1: give ...``."""
    return text.partition(": ")[0].partition(" ")[0].rpartition(".")[2]


def check_words(words: Sequence[str]) -> None:
    """Looks at `key=value` words alone, before the config that they change is known.

    Raises:
        ConfigError: a value that no choice of its group takes.
    """
    for word in words:
        key, _, text = word.partition("=")
        group, _, last = key.lstrip("+").rpartition(".")
        kinds = [BY_TARGET[name] for name in sorted(TARGETS.get(group, ())) if name in BY_TARGET] if group else [Run]
        kinds = [kind for kind in kinds if last in kind.model_fields and (group or last not in TARGETS)]  # no choices
        if kinds and "${" not in text and not key.startswith("~"):
            problems = [wrong_values({last: parsed_value(text)}, kind, group, alone=True) for kind in kinds]
            # Where choices of the group take other values than whether null is one, which of them is meant is known once the
            # config is.
            if all(problems) and len({told[0].replace(" or null", "") for told in problems}) == 1:
                raise ConfigError(min((told[0] for told in problems), key=len))


def check_added(config: Mapping[str, Any], words: Sequence[str]) -> None:
    """Raises ConfigError where a word such as ``+data.batchsize=4`` adds a key that its node's target does not take."""
    for word in words:
        path, _, key = word.partition("=")[0].lstrip("+").rpartition(".")
        node: Any = config
        for part in path.split(".") if word.startswith("+") and path else []:
            node = node.get(part) if isinstance(node, Mapping) else None
        settings = BY_TARGET.get(str(node.get("_target_"))) if isinstance(node, Mapping) else None
        if settings is not None and settings.closed and key not in settings.model_fields and key not in HYDRA_KEYS:
            raise ConfigError(_unknown(key, settings.model_fields, path))


def wrong_values(node: Mapping[str, Any], settings: type[Settings], path: str, *, alone: bool = False) -> list[str]:
    """A sentence for each key of a node that has a wrong value. A key that a config of an older version lacks is none.

    Args:
        alone: each value is looked at by itself, not whether they go together.
    """
    try:
        settings.model_validate(dict(node))
    except ValidationError as error:
        keys = dict.fromkeys(str(part["loc"][0]) for part in error.errors(include_url=False) if part["type"] != "missing")
        if keys:
            return [_told(key, node[key], settings, path) for key in keys]
    if alone:
        return []
    for key in settings.required:
        if key not in node:
            fix = fix_of(_annotated(settings.model_fields[key].annotation, settings.model_fields[key].metadata))
            return [f"{_full(path, key)} is taken away (~{_full(path, key)}), and no run does without: give {fix}"]
    known = settings.model_fields
    try:
        problem = settings.model_construct(**{**dict.fromkeys(known), **node}).problem()
    except TypeError:  # a key that two others are compared with is not there
        problem = None
    return [f"{_full(path, problem[0])}={shown(node.get(problem[0]))}: {problem[1]}"] if problem else []


def _unknown(key: str, known: Iterable[str], path: str) -> str:
    near = nearest(key, known)
    right = did_you_mean(_full(path, near) if near else None)
    return f"{_full(path, key)} is not a config key.{right}\n  keys of {path}: {listed(known)}"


def _full(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _told(key: str, value: Any, settings: type[Settings], path: str) -> str:
    field = settings.model_fields[key]
    fix = fix_of(_annotated(field.annotation, field.metadata))
    full = _full(path, key)
    choices = [choice for choice in _choices(field.annotation) if isinstance(choice, str)]
    near = nearest(value, choices) if isinstance(value, str) and choices else None
    return f"{full}={shown(value)}: give {fix}.{did_you_mean(f'{full}={near}' if near else None)}"


def _annotated(annotation: Any, metadata: list[Any]) -> Any:
    """A field's type with its annotations, which pydantic keeps apart."""
    from typing import Annotated

    for note in metadata:
        annotation = Annotated[annotation, note]
    return annotation


def _choices(annotation: Any) -> Iterator[Any]:
    from typing import Literal, get_args, get_origin

    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _nodes(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _nodes(value, f"{path}[{index}]")

"""A task from its parts: the data says what must be predicted, the task whether the model is causal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from longspan.config.errors import wrong_value
from longspan.models.attention_choice import AttentionChoice
from longspan.models.encoder_decoder import encoder_decoder
from longspan.tasks.base import Task

STRANDS = "strands"  # a fact that checkpoints of nucleotides have


def task_class(task: type[Task] | partial[Task]) -> type[Task]:
    """The class behind a task or a partial of one.

    Raises:
        ConfigError: it is no task.
    """
    found = task.func if isinstance(task, partial) else task
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise wrong_value("task", found, "give one of the tasks, as in task=language_modelling")
    return found


def data_facts(task: type[Task] | partial[Task], data: Any) -> dict[str, Any]:
    """The facts of the data that a task is built with, as plain values: enough to build it again without the data.

    Args:
        data: a data module after its ``setup``: ``vocab_size``, ``max_length``, of images ``grid`` and ``patches``, of
            nucleotides their complement, and what the task's ``data_arguments`` asks for.

    Raises:
        ConfigError: the task is none, or the data cannot serve it.
    """
    kind = task_class(task)
    served = getattr(data, "tasks", None)
    # longspan.tasks.TokenLabelling -> token_labelling, as data modules and the command line name tasks
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
    if served and kind.__module__.startswith("longspan.") and name not in served:
        raise wrong_value("task", name, f"this data ({type(data).__name__}) is for {', '.join(served)}; give task={served[0]}")
    try:
        return {
            "vocab_size": int(data.vocab_size),
            "max_length": int(data.max_length),
            **_image_facts(data),
            **_strand_facts(data),
            **kind.data_arguments(data),
        }
    except (AttributeError, TypeError) as error:
        others = f"{', '.join(served)}; give task={served[0]}" if served else "other tasks"
        raise wrong_value("task", kind.__name__, f"this data ({type(data).__name__}) is for {others}") from error


def _image_facts(data: Any) -> dict[str, Any]:
    grid = getattr(data, "grid", None)
    return {} if grid is None else {"grid": list(grid), "patches": bool(data.patches)}


def _strand_facts(data: Any) -> dict[str, Any]:
    """How a sequence of nucleotides is read from the other strand."""
    vocabulary: Any = getattr(data, "vocabulary", None)
    complement = getattr(vocabulary, "complement", None)
    if complement is None:
        return {}
    return {STRANDS: {"complement": complement.tolist(), "bos_id": int(vocabulary.bos_id)}}


def build_task(
    task: type[Task] | partial[Task],
    *,
    model: Callable[..., Any],
    attention: AttentionChoice,
    data: Any,
    optimizer: Callable[..., Any] | None = None,
    scheduler: Callable[..., Any] | None = None,
) -> Task:
    """Build the model for the data and the task around it.

    Args:
        task: a task class, or a partial of one with its settings.
        model: a partial of :func:`longspan.models.transformer` with its sizes.
        attention: see :func:`longspan.models.attention_choice.attention_of_each_layer`.
        data: a data module after its ``setup``, or what :func:`data_facts` said of one. Settings already in the
            task's partial win over it.
        optimizer, scheduler: partials; see :class:`longspan.tasks.base.Task`.

    Raises:
        ConfigError: the task is none, or the data cannot serve it.
        ConfigError: sizes that do not fit each other.
    """
    kind = task_class(task)
    facts = dict(data) if isinstance(data, Mapping) else data_facts(task, data)
    given = task.keywords if isinstance(task, partial) else {}
    paired = bool(kind.model_facts)
    if paired != (getattr(model, "func", model) is encoder_decoder):
        fix = "it takes model=encoder_decoder" if paired else "model=encoder_decoder is for task=sequence_to_sequence alone"
        raise wrong_value("task", kind.__name__, fix)
    strands = facts.pop(STRANDS, None)
    settings = getattr(model, "keywords", {})
    backbone = model(
        causal=bool(given.get("causal", kind.causal)),
        vocab_size=facts.pop("vocab_size"),
        max_length=facts.pop("max_length"),
        attention=attention,
        **{name: facts.pop(name) for name in ("grid", "patches") if name in facts},
        **{name: facts.pop(name) for name in kind.model_facts},
        **({STRANDS: strands} if settings.get("reverse_complement") else {}),
    )
    arguments = {name: value for name, value in facts.items() if given.get(name) is None}
    made = task(model=backbone, optimizer=optimizer, scheduler=scheduler, **arguments)
    if not isinstance(data, Mapping):
        made.attach(data)
    return made

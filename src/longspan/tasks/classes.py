"""Checks of classes, their names and their weights in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longspan.config.errors import wrong_value
from longspan.tasks.class_loss import BALANCED


def check_classes(num_classes: int, class_names: Sequence[str] | None) -> list[str]:
    """Names of the classes, their numbers where none are given.

    Raises:
        ConfigError: fewer than two classes, or another number of names than of classes.
    """
    if num_classes < 2:
        raise wrong_value("task.num_classes", num_classes, "there must be 2 classes or more")
    if class_names is None:
        return [str(number) for number in range(num_classes)]
    if len(class_names) != num_classes:
        raise wrong_value("task.class_names", list(class_names), f"give {num_classes} names, one a class")
    return [str(name) for name in class_names]


def names_of(data: Any) -> list[str] | None:
    """Class names of a data module as plain text, None where it has none."""
    names = getattr(data, "class_names", None)
    return None if names is None else [str(name) for name in names]


def checked_weights(class_weights: Sequence[float] | str | None, num_classes: int) -> list[float] | str | None:
    """The weights as plain numbers, or "balanced", which the training data decides.

    Raises:
        ConfigError: another word, not one number a class, or one not above 0.
    """
    if class_weights is None or class_weights == BALANCED:
        return class_weights
    try:
        if isinstance(class_weights, str):
            raise ValueError
        weights = [float(weight) for weight in class_weights]
    except (TypeError, ValueError):
        fix = f"give {BALANCED}, or {num_classes} numbers above 0, one a class"
        raise wrong_value("task.class_weights", class_weights, fix) from None
    if len(weights) != num_classes or not all(weight > 0 for weight in weights):
        raise wrong_value("task.class_weights", weights, f"give {num_classes} numbers above 0, one a class")
    return weights

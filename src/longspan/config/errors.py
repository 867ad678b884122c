"""The errors that Longspan raises, and how they reach the screen: a short message, no traceback, exit code 2.

Some errors carry values of their own and stand where those are made: `PatternError` (patterns/errors.py), `DataFileError`
(data/errors.py), `OutsideVocabularyError` (data/vocabularies/base.py) and `NonFiniteLossError` (tasks/errors.py). Kernels
raise `KernelError` and `BackendError` (longspan_kernels/errors.py).
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ConfigError(ValueError):
    """A config key or value that cannot work; the message names the key, the value and what would be right.

    Attributes:
        key: the key at fault, empty where the message is not about a single one.
        problem: the message without the key.
    """

    def __init__(self, message: str, key: str = "", problem: str = "") -> None:
        super().__init__(message)
        self.key, self.problem = key, problem or message


def wrong_value(key: str, value: object, fix: str) -> ConfigError:
    """The error for a config key whose value cannot be used."""
    return ConfigError(f"{key}={value!r}: {fix}", key, f"={value!r}: {fix}")


class CallError(ValueError):
    """Tensors, lengths or other arguments of a call that do not work; the message names them and what would be right."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, not one of ours, or does not fit what it is asked for."""


class CheckpointWriteError(OSError):
    """A checkpoint that the disk would not take; the message names the one that stands."""


class RecordError(ValueError):
    """A record or a benchmark's result that is missing, cannot be read or must not be written; says which file and why."""


class BenchmarkError(ValueError):
    """What cannot be measured, here or at all; the message names it and what would be right."""


class InUseError(RuntimeError):
    """Another process works in a folder.

    Attributes:
        holder: what it wrote down of itself.
    """

    def __init__(self, message: str, holder: dict[str, Any]) -> None:
        super().__init__(message)
        self.holder = holder


def is_explained(error: BaseException) -> bool:
    """Whether the error is of a type this project defines: its message then says all that the user needs."""
    return type(error).__module__.split(".")[0] in ("longspan", "longspan_kernels")


def of_worker(error: BaseException) -> str | None:
    """The type and message of an explained error that a DataLoader's worker raised, or None.

    torch raises it again with the worker's traceback as its message, or as a RuntimeError.
    """
    if not re.match(r"Caught \w+ in DataLoader worker process", str(error)):
        return None
    found = re.split(r"^longspan[\w.]*\.(\w+): ", str(error), flags=re.MULTILINE)
    return f"{found[-2]}: {found[-1].strip()}" if len(found) > 1 else None


@contextmanager
def readable_errors() -> Iterator[None]:
    """Prints an explained error as one short message and exits with code 2.

    Ctrl-C exits with code 130, and output that nobody reads any more, as behind `| head`, with 141. Other exceptions, and all
    of them under HYDRA_FULL_ERROR=1, keep their traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # who reads, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        sys.exit(141)  # as a shell calls SIGPIPE
    except Exception as error:
        said = of_worker(error) or (f"{type(error).__name__}: {error}" if is_explained(error) else None)
        if said is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(said, file=sys.stderr)
        sys.exit(2)

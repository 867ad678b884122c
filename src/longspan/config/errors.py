"""What a user's mistake raises, and how it reaches the screen: a short message, no traceback, exit code 2."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A config key or value that cannot work; the message names the key, the value and what would be right."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, not one of ours, or does not fit what it is asked for."""


class CheckpointWriteError(OSError):
    """A checkpoint that the disk would not take; the message names the one that stands."""


def is_explained(error: BaseException) -> bool:
    """Whether the error is of a type this project defines: its message then says all that the user needs."""
    return type(error).__module__.split(".")[0] in ("longspan", "longspan_kernels")


@contextmanager
def readable_errors() -> Iterator[None]:
    """Prints an explained error as one short message and exits with code 2.

    Ctrl-C exits with code 130. Other exceptions, and all of them under HYDRA_FULL_ERROR=1, keep their traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if not is_explained(error) or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)

"""`train.py ckpt_path=RUN/checkpoints/last.ckpt`: the config is the checkpoint's, with the other words on top of it.

Hydra composes its config from conf/, where `attention.window=64` is no key if the default attention has none. So it sees only
its own words and `ckpt_path`; the rest waits until the checkpoint is read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from longspan.config.overrides import unquoted
from longspan.config.reachable import check_checkpoint
from longspan.config.values import check_words

_typed: list[str] | None = None


def resumes(words: Sequence[str]) -> bool:
    """Whether the words resume from a checkpoint that they name.

    Not with `ckpt_path=auto`, for which everything is typed again; nor in a sweep, or with `experiment=`, which are configs
    of their own.
    """
    given = [unquoted(word.partition("=")[2]) for word in words if word.startswith("ckpt_path=")]
    own = any(word.startswith(("-", "experiment=", "sweep=", "hydra.mode=")) for word in words)
    return bool(given) and given[-1] not in ("auto", "null", "") and not own


def words_of_hydra(words: Sequence[str]) -> list[str]:
    """The words that Hydra gets to see."""
    return [word for word in words if word.lstrip("+~").startswith(("hydra.", "hydra/", "ckpt_path=", "output_dir="))]


def words_on_top(words: Sequence[str]) -> list[str]:
    """The words that change the checkpoint's config.

    Raises:
        ConfigError: a value that its key takes in no config.
    """
    rest = [word for word in words if word not in words_of_hydra(words)]
    check_words(rest)
    return rest


def hide_words() -> None:
    """Leaves only the words of Hydra in `sys.argv` where the run resumes from a checkpoint; `shown_again` restores the others.

    Raises:
        CheckpointError: there is no such file.
    """
    global _typed
    words = sys.argv[1:]
    if resumes(words):
        check_checkpoint("ckpt_path", unquoted([word for word in words if word.startswith("ckpt_path=")][-1].partition("=")[2]))
        words_on_top(words)
        _typed = words
        sys.argv[1:] = words_of_hydra(words)


def shown_again() -> list[str] | None:
    """Restores `sys.argv`, and returns the words that change the checkpoint's config; None where the run does not resume from
    one."""
    if _typed is None:
        return None
    sys.argv[1:] = _typed
    return words_on_top(_typed)

"""Keeps built data in folders named by a hash of what they were built from; a folder is complete or not there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longspan.config.errors import wrong_value


def cache_root() -> Path:
    """The folder of `LONGSPAN_CACHE`, else `longspan` in the user's cache folder."""
    given = os.environ.get("LONGSPAN_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longspan"


def built(kind: str, settings: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled for these settings, now or earlier.

    Args:
        kind: what it is; also names the folder.
        settings: plain values; another value is another folder.
        build: writes into an empty folder. Where it fails or is interrupted, nothing is left; where another process builds
            the same, this one waits for it.

    Raises:
        ConfigError: the cache cannot be written; the message names its folder.
    """
    try:
        return _built(kind, settings, build)
    except OSError as error:  # what `build` reads is refused by name, as a DataFileError
        fix = "set it to a folder that can be written and has room (by default ~/.cache/longspan)"
        problem = f"the cache cannot be written ({error.strerror or error}: {error.filename or 'while building'}); {fix}"
        raise wrong_value("LONGSPAN_CACHE", str(cache_root()), problem) from error


def _built(kind: str, settings: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    text = json.dumps(settings, sort_keys=True)
    root = cache_root()
    folder = root / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
        try:
            build(unfinished)
            (unfinished / "settings.json").write_text(text + "\n", encoding="utf-8")
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder

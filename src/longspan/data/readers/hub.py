"""Data sets of the Hugging Face Hub, by name; where the Hub cannot be reached, from the local cache or not at all."""

from __future__ import annotations

import os
import socket
from typing import Any
from urllib.parse import urlsplit

from longspan.config.errors import wrong_value
from longspan.data.readers.rows import Row

# long enough for a far mirror, short enough that a wrong name costs a second and not the library's minutes of retries
CONNECT_SECONDS = 3.0


def hub_reachable() -> bool:
    """Whether a connection to the Hub (or to the proxy on the way) opens; False too under HF_HUB_OFFLINE."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    proxies = (os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    target = urlsplit(next((proxy for proxy in proxies if proxy), endpoint))
    if not target.hostname:
        return False
    try:
        port = target.port or (443 if target.scheme == "https" else 80)
        with socket.create_connection((target.hostname, port), timeout=CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def read_hub(name: str, subset: str | None, split: str) -> list[Row]:
    """The rows of one split of `datasets.load_dataset(name, subset)`; `line` is the row's number, from 1.

    Raises:
        ConfigError: the Hub cannot be reached and the cache has no copy, or there is no such data set or split.
    """
    data = _loaded(name, subset, split)
    classes = classes_of_features(data.features)
    return [Row(f"{name} ({split})", number, dict(values), classes=classes) for number, values in enumerate(data, start=1)]


def classes_of_features(features: Any) -> dict[str, tuple[str, ...]] | None:
    """{column: names of its classes} of the columns that are a `datasets.ClassLabel`, or lists of one.

    Names among which is a number are left out: beside the numbers of classes, nobody could tell which of them is meant.
    """
    found = {}
    for column, feature in (features or {}).items():
        names = tuple(str(name).strip() for name in getattr(getattr(feature, "feature", feature), "names", None) or ())
        if names and "" not in names and len(set(names)) == len(names) and not any(map(_is_number, names)):
            found[column] = names
    return found or None


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def stream_hub(name: str, subset: str | None, split: str) -> Any:
    """One split as a `datasets.IterableDataset`, of which nothing is read yet.

    Raises:
        ConfigError: as `read_hub`; also of a cached copy, which is not streamed.
    """
    return _loaded(name, subset, split, streaming=True)


def _loaded(name: str, subset: str | None, split: str, **how: Any) -> Any:
    import datasets

    reachable = hub_reachable()
    before = datasets.config.HF_HUB_OFFLINE
    try:
        if not reachable:
            datasets.config.HF_HUB_OFFLINE = True
        options = datasets.DownloadConfig(max_retries=1, local_files_only=not reachable)
        return datasets.load_dataset(name, subset, split=split, download_config=options, **how)
    except Exception as error:  # the library raises many kinds; each means that the rows are not to be had
        said = str(error).strip().splitlines() or [type(error).__name__]
        if reachable:
            fix = f"the Hub gave no split {split!r} ({said[0]}); check the name, data.subset and data.train_split"
        else:
            fix = (
                "the Hugging Face Hub cannot be reached, and the local cache has no copy "
                f"({said[0]}); download it where there is a network, or set data.path to a file of your own"
            )
        raise wrong_value("data.name", name, fix) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before

"""A config folder of the user's own, whose files come before those of `conf/`: `--config-dir my_conf`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin

from longspan.config.errors import ConfigError
from longspan.config.written import quoted

SEARCH_PATH = "hydra.searchpath="  # begins the word that names such folders
OPTIONS = ("--config-dir", "-cd")

_folders: ContextVar[tuple[str, ...]] = ContextVar("folders", default=())


def with_own_folder(words: Sequence[str]) -> list[str]:
    """The words of a command line, `--config-dir FOLDER` as the word that each run of it understands.

    Raises:
        ConfigError: no such folder, or several, here or in a word of Hydra's beside it.
    """
    rest, folders = [], []
    given = iter(words)
    for word in given:
        option, equals, value = word.partition("=")
        if option in OPTIONS:
            folders.append(value if equals else next(given, ""))
        else:
            rest.append(word)
    if not folders:
        return rest
    if len(folders) > 1 or not folders[0] or not Path(folders[0]).expanduser().is_dir():
        raise ConfigError(
            f"--config-dir {' '.join(folders)}: give one folder that is there, with groups such as attention/ in it"
        )
    beside = [folder for word in rest for folder in _named([word])]
    if beside:
        both = ",".join([f"file://{Path(folders[0]).expanduser().resolve()}", *beside])
        raise ConfigError(f"--config-dir and hydra.searchpath name folders both: give the second alone, {SEARCH_PATH}[{both}]")
    named = f"{SEARCH_PATH}[{quoted(f'file://{Path(folders[0]).expanduser().resolve()}')}]"
    first = next((at for at, word in enumerate(rest) if "=" in word and not word.startswith("-")), len(rest))
    return [*rest[:first], named, *rest[first:]]  # Hydra takes its overrides from one place among the options


def as_typed(words: Sequence[str]) -> list[str]:
    """The same words as a user types them: one folder of their own is `--config-dir FOLDER` again."""
    typed: list[str] = []
    for word in words:
        named = _named([word])
        if len(named) == 1 and named[0].startswith("file://"):
            typed += ["--config-dir", named[0].removeprefix("file://")]
        else:
            typed.append(word)
    return typed


@contextmanager
def own_folders_first(words: Sequence[str]) -> Iterator[None]:
    """Configs that are composed inside take their files from the folders of `hydra.searchpath` first. Hydra itself looks there
    last, so that a file of the user's own would lose to the one of the same name in `conf/`."""
    Plugins.instance().register(_OwnFoldersFirst)  # a second time changes nothing
    token = _folders.set(tuple(_named(words)))
    try:
        yield
    finally:
        _folders.reset(token)


def _named(words: Sequence[str]) -> list[str]:
    for word in words:
        if word.startswith(SEARCH_PATH):
            try:
                value = OverridesParser.create().parse_override(word).value()
            except HydraException:
                return []  # Hydra says what is wrong with it
            return [str(folder) for folder in value] if isinstance(value, list) else []
    return []


class _OwnFoldersFirst(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(_folders.get()):
            search_path.prepend(provider="own", path=folder)

"""Labels that files say by where they lie: a file a class, or a folder a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from longspan.config.errors import wrong_value
from longspan.data.errors import DataFileError
from longspan.data.files import stem_of


def labels_of_places(key: str, path: str, files: Sequence[tuple[Path, str]], label_from: str) -> Callable[[Path], str]:
    """Tells the label of a file: its own name, or that of the folder below `path` that it is in.

    Args:
        key: of the config, which has `path`.
        files: those of `path`, with their formats.
        label_from: "file", "folder" or, as they lie, "auto".

    Raises:
        ConfigError: `path` is no folder, or some files are in folders and some are not.
        DataFileError: the folder of a class holds no file.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        kind = files[0][1]
        fix = f"{path} is {kind.upper() if kind == 'fasta' else kind}, which has no labels; name a table of id and label"
        raise wrong_value("data.labels_path", None, f"{fix}, or a folder with a file or a folder a class by data.path")
    parts = [file.relative_to(root).parts for file, _ in files]
    deep = {len(part) > 1 for part in parts}
    by = ("folder" if deep == {True} else "file") if label_from == "auto" else label_from
    if (by == "folder" and False in deep) or (by == "file" and len(deep) > 1):
        loose = next(part[0] for part in parts if len(part) == 1)
        fix = f"some files are in folders and {loose} is not; put each class in a folder, or each in a file"
        raise wrong_value(f"data.{key}", path, fix)
    if by == "file":
        if files[0][1] == "text":
            fix = "a text file is one document, and no class; put each class in a folder, or set data.format=lines"
            raise wrong_value(f"data.{key}", path, fix)
        return stem_of
    folders = {place.name for place in root.iterdir() if place.is_dir() and not place.name.startswith(".")}
    if bare := sorted(folders - {part[0] for part in parts}):
        raise DataFileError(root / bare[0], None, "the class has no file; give some, or remove its folder")
    return lambda file: file.relative_to(root).parts[0]

"""Pathfinder as a data module: images made to the specification, or the published folders of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.errors import DataFileError
from longspan.data.images.module import Given, ImageDataModule
from longspan.data.images.sources import Images, header, opened
from longspan.data.images.tokens import Cutting
from longspan.data.lra.listops_data import PAPER, Sizes
from longspan.data.lra.pathfinder import CLASSES, Pathfinder
from longspan.data.made import Made, kept
from longspan.data.values import Fractions, Loading, gathered


class PathfinderDataModule(ImageDataModule):
    """{"tokens", "labels"}: images of dashed curves and two dots, "joined" or "apart".

    `path`: a published folder, such as lra_release/pathfinder32/curv_contour_length_14, with `metadata/*.npy` and `imgs/`; a
    tenth of it each is held out. null makes images: see `longspan.data.lra.pathfinder.Pathfinder` for how they look.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    def __init__(self, path: str | None = None, **keys: Any):
        self.path = settings.text_or_none("path", path)
        default = Loading(batch_size=32, max_length=1024)
        given = Pathfinder(), Sizes(train_examples=160_000, validation_examples=20_000, test_examples=20_000)
        cutting, shares = Cutting(input="pixels"), Fractions(validation_fraction=0.1, test_fraction=0.1)
        self.look, self.sizes, cutting, shares, loading = gathered(self, keys, *given, cutting, shares, default)
        super().__init__(cutting, loading, shares if self.path else None)
        self._classes(list(CLASSES))

    def _images(self) -> Given:
        if self.path is not None:
            return {"train": published(Path(self.path)), "validation": None, "test": None}
        made = kept("pathfinder", asdict(self.look), self.look.pixels, self.sizes.made_seed, self.sizes.under(self.limits))
        return {split: self._of(part) for split, part in made.items()}

    def _of(self, made: Made) -> Images:
        side = self.look.side
        labels = [CLASSES[n] for n in made.targets]
        return Images(lambda n: made[n].reshape(side, side, 1), labels, [str(n) for n in range(len(made))], (side, side, 1))

    def _load_predict(self) -> Any:
        return self._labelled()["test"]

    @property
    def to_record(self) -> dict[str, Any]:
        where = {"source": self.path} if self.path else {"source": "made: Pathfinder", **asdict(self.look)}
        return {**where, "paper": PAPER}


def published(folder: Path) -> Images:
    """The images that the rows of `metadata/*.npy` (text: folder, file, number, label, ...) name, below `folder`.

    Raises:
        ConfigError: there are none.
        DataFileError: a row is not as it should be, or an image is not there.
    """
    rows: list[tuple[Path, str]] = []
    for file in sorted((folder / "metadata").glob("*.npy"), key=lambda file: (len(file.name), file.name)):
        for number, line in enumerate(file.read_bytes().decode("ascii", errors="replace").splitlines(), start=1):
            words = line.split()
            if len(words) < 4 or words[3] not in ("0", "1"):
                raise DataFileError(file, number, "the row is not: folder, file, number, label 0 or 1, ...")
            rows.append((folder / words[0] / words[1], CLASSES[int(words[3])]))
    if not rows:
        raise wrong_value("data.path", str(folder), "holds no metadata/*.npy; give a folder such as curv_contour_length_14")
    missing = next((image for image, _ in rows if not image.is_file()), None)
    if missing is not None:
        raise DataFileError(missing, None, "is named in the metadata, and is not there")
    height, width = header(rows[0][0])[:2]
    shape = (height, width, 1)

    def read(number: int) -> np.ndarray:
        image = opened(rows[number][0], shape)
        if image.shape != shape:
            raise DataFileError(
                rows[number][0], None, f"has {image.shape[0]} x {image.shape[1]} pixels, others {height} x {width}"
            )
        return image

    return Images(read, [label for _, label in rows], [image.name for image, _ in rows], shape)

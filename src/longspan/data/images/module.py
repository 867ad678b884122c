"""Classification of images, whose pixels or patches are tokens, row by row.

Legend: B batch, T tokens of an image, P numbers a patch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.dropped import in_training
from longspan.data.errors import DataFileError
from longspan.data.images import sources
from longspan.data.images.equal import held, marks
from longspan.data.images.sources import SPLIT_WORDS, Images
from longspan.data.images.tokens import Cutting, with_channels
from longspan.data.labelled import LabelledDataModule, LabelledSet
from longspan.data.readers import read_hub
from longspan.data.splits import SPLITS, by_groups
from longspan.data.values import Fractions, Loading, gathered

Given = Mapping[str, Images | None]


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """`path`: a folder of images, an .npz or .npy, a folder of CIFAR-10's binary files; or `name`, a Hugging Face data set.

    `subset`, `train_split`, `validation_split`, `test_split`, `image_column`, `label_column`: of the Hub's.
    """

    path: str | None = None
    name: str | None = None
    subset: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    image_column: str = "image"
    label_column: str = "label"

    def __post_init__(self) -> None:
        for key in ("path", "name", "subset", "validation_split", "test_split"):
            settings.text_or_none(key, getattr(self, key))
        for key in ("train_split", "image_column", "label_column"):
            settings.text(key, getattr(self, key))
        if self.path and self.name:
            raise wrong_value("data.name", self.name, f"data.path={self.path!r} is set too; set one of them to null")

    def read(self, labelled: bool = True, known: Sequence[str] | None = None) -> Given:
        """The images of each split, None for a split that there is none of. Not `labelled`: those of a folder need no class.
        `known`: the classes, where they are, for the Hub's.

        Raises:
            ConfigError, DataFileError: there are none, or they cannot be read.
        """
        if self.name:
            wanted = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}
            columns = self.image_column, self.label_column
            return {
                split: sources.read_hub_images(read_hub(self.name, self.subset, word), *columns, known) if word else None
                for split, word in wanted.items()
            }
        if self.path is None:
            raise wrong_value("data.path", None, "give a folder of images, an .npz or .npy, or data.name")
        path = Path(self.path)
        if path.is_file() and path.suffix in (".npz", ".npy"):
            return {**dict.fromkeys(SPLITS), **sources.read_archive(path)}
        if not path.is_dir():
            raise wrong_value("data.path", self.path, "is no folder and no .npz or .npy file")
        if sorted(path.glob("data_batch_*.bin")):
            tests = [file for file in (path / "test_batch.bin",) if file.is_file()]
            return {
                "train": sources.read_cifar(path, sorted(path.glob("data_batch_*.bin"))),
                "validation": None,
                "test": sources.read_cifar(path, tests) if tests else None,
            }
        return self._folders(path) if labelled else {"train": sources.read_folder(path, labelled=False)}

    @staticmethod
    def _folders(path: Path) -> Given:
        own = {
            split: next((path / word for word in words if (path / word).is_dir()), None) for split, words in SPLIT_WORDS.items()
        }
        if own["train"] is None:
            return {"train": sources.read_folder(path), "validation": None, "test": None}
        train = sources.read_folder(own["train"])
        return {
            split: train if split == "train" else sources.read_folder(folder, train.shape) if folder else None
            for split, folder in own.items()
        }


class ImageDataModule(LabelledDataModule):
    """Base of what has images: cuts them into tokens. `max_length` is what the images give.

    {"tokens": [B, T] int64 of pixels or [B, T, P] uint8 of patches, "labels": [B]}.

    Attributes:
        grid: rows and columns of tokens, once the data is read.
        patches: whether tokens are patches.
    """

    def __init__(self, cutting: Cutting, loading: Loading, shares: Fractions | None = None):
        super().__init__("bytes", loading)
        self.cutting, self.splits = cutting, shares
        self.patches = cutting.input == "patches"
        self._shape: tuple[int, int, int] | None = None
        self._of_training = False  # whether the shape is that of the images that a checkpoint was trained on

    @abstractmethod
    def _images(self) -> Given:
        """The images of each split; None for one that is held out of training."""

    @property
    def grid(self) -> tuple[int, int]:
        self.setup()
        assert self._shape is not None
        return self.cutting.grid(*self._shape[:2])

    @property
    def vocab_size(self) -> int:
        if not self.patches:
            return self.vocabulary.size
        self.setup()
        assert self._shape is not None
        return self.cutting.patch**2 * self.cutting.channels(self._shape[2])

    def _labelled(self) -> dict[str, LabelledSet]:
        given = self._images()
        present = [images for images in given.values() if images is not None]
        train = given["train"]
        assert train is not None
        for images in present:
            self._count(images)
            if images.labels is None:
                fix = "give an .npz with images and labels, or beside NAME.npy an array NAME_labels.npy"
                raise wrong_value("data.path", self.to_record["source"], f"the images have no labels; {fix}")
            if images.shape != train.shape:
                raise DataFileError(
                    str(self.to_record["source"]),
                    None,
                    f"test or validation images are {images.shape}, those of training {train.shape}; scale all to one size, "
                    "in colour or all in grey",
                )
        if self.class_names is None:
            self._classes(sources.sorted_classes(train))
        number = {name: n for n, name in enumerate(self.class_names or ())}
        if len(number) < 2:
            raise wrong_value("data.path", self.to_record["source"], f"gives {len(number)} class; nothing to learn")
        self._take(train.shape)
        whole = {split: self._set(images, number) for split, images in given.items() if images is not None}
        shares: dict[str, float] = (
            {}
            if self.splits is None
            else {
                split: 0.0 if split in whole else getattr(self.splits, f"{split}_fraction") for split in ("validation", "test")
            }
        )
        sets = self._held_out(whole, shares) if any(shares.values()) else whole
        self.in_training = in_training(marks(self._contents(given, sets)), "images")
        return sets

    def _count(self, images: Images) -> None:
        self.dropped.add("files that are no images", len(images.others), str(next(iter(images.others), "")))
        self.dropped.add("alpha channels of images", len(images.transparent), next(iter(images.transparent), ""))

    @staticmethod
    def _contents(given: Given, sets: Mapping[str, LabelledSet]) -> dict[str, list[Path | bytes]]:
        """What is compared of the images of training and of the splits that are given; none where images are not compared."""
        found = {}
        for split, images in given.items():
            names = sets[split].names
            if images is not None and images.content is not None and names is not None:
                number = {name: n for n, name in enumerate(images.names)}
                found[split] = [held(images.content(number[name])) for name in names]
        return found if "train" in found and len(found) > 1 else {"train": []}

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        side = self.cutting.side
        channels = int(facts["vocab_size"]) // side**2 if facts.get("patches") else 1
        if facts.get("grid") and channels in sources.MODES:
            rows, columns = facts["grid"]
            self._take((rows * side, columns * side, channels))
            self._of_training = True

    @property
    def _whose(self) -> str:
        return "those of training" if self._of_training else "the ones before it"

    def _take(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        rows, columns = self.cutting.grid(*shape[:2])
        self.max_length = rows * columns

    def _set(self, images: Images, number: Mapping[str, int]) -> LabelledSet:
        targets = None
        if images.labels is not None:
            for name, label in zip(images.names, images.labels, strict=True):
                if label not in number:
                    said = f"image {name}: label {label!r} is on no training image, and not in data.class_names"
                    raise DataFileError(str(self.to_record["source"]), None, said)
            targets = np.array([number[name] for name in images.labels], dtype=np.int64)
        return LabelledSet(lambda n: self.cutting.tokens(images.read(n)), targets, len(images), images.names)

    def _held_out(self, whole: dict[str, LabelledSet], shares: dict[str, float]) -> dict[str, LabelledSet]:
        """Shares of the training images, classes spread evenly; equal images stay in one split."""
        pool = whole["train"]
        assert pool.targets is not None
        groups = (
            [np.asarray(pool.tokens(n)).tobytes() for n in range(len(pool))] if len(pool) <= FEW else list(range(len(pool)))
        )
        spread = np.eye(self.num_classes or 0)[pool.targets]
        chosen = by_groups(groups, spread, seed=self.seed, **shares)
        return {split: whole[split] if split != "train" and split in whole else pool.only(chosen[split]) for split in SPLITS}

    def _options(self, names: bool = False) -> dict[str, Any]:
        return {**super()._options(names), "collate_fn": ImageCollate(names)}

    def given_dataloader(self, texts: Sequence[Any], names: Sequence[str] | None = None) -> DataLoader:
        """Batches of images from Python: arrays [H, W] or [H, W, c] of uint8, or files' names."""
        read: list[np.ndarray] = []
        for n, given in enumerate(texts):
            if isinstance(given, (str, Path)):
                image = sources.opened(Path(given), self._shape or sources.header(Path(given)))
            else:
                image = np.asarray(given, dtype=np.uint8)
            image = image.reshape(*image.shape[:2], -1)
            if self._shape is None:
                self._take((image.shape[0], image.shape[1], image.shape[2]))
            assert self._shape is not None
            sources.check_size(f"sequences[{n}]", None, image.shape[:2], self._shape[:2], self._whose)
            read.append(self.cutting.tokens(with_channels(image, self._shape[2])))
        data = LabelledSet(read.__getitem__, None, len(read), list(names) if names else None)
        return DataLoader(data, shuffle=False, **{**self._options(names=True), "num_workers": 0, "persistent_workers": False})


FEW = 20_000  # images that are compared with each other when splits are drawn


class ImageCollate:
    """Stacks images: pixels as int64, patches as uint8."""

    def __init__(self, names: bool):
        self.names = names

    def __call__(self, items: list[dict]) -> dict[str, Any]:
        tokens = torch.from_numpy(np.stack([np.asarray(item["tokens"]) for item in items]))
        batch: dict[str, Any] = {"tokens": tokens if tokens.dim() == 3 else tokens.long()}
        if "target" in items[0]:
            batch["labels"] = torch.tensor([int(item["target"]) for item in items])
        if self.names:
            batch["ids"] = [item["id"] for item in items]
            batch["starts"] = torch.zeros(len(items), dtype=torch.int64)
        return batch


class ImageClassificationDataModule(ImageDataModule):
    """{"tokens", "labels"}: images of one size with one class each; see `ImageSource`, `Cutting` and `Fractions` for settings.

    A folder holds a folder a class, or folders `train`, `test`, `val` of such. What is not given is held out of training.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sequence_classification",)

    def __init__(self, path: str | None = None, *, class_names: Sequence[str] | None = None, **keys: Any):
        given = ImageSource(path=path), Cutting(), Fractions(validation_fraction=0.1, test_fraction=0.1)
        default = Loading(batch_size=32, max_length=1024)
        self.images, cutting, shares, loading = gathered(self, keys, *given, default)
        super().__init__(cutting, loading, shares)
        if class_names is not None:
            self._classes([str(name) for name in class_names])

    def _images(self) -> Given:
        return self.images.read(known=self.class_names)

    def _load_predict(self) -> LabelledSet:
        images = self.images.read(labelled=False)["train"]
        assert images is not None
        self._count(images)
        shape = self._shape or images.shape
        where = f"{self.to_record['source']}, image {images.names[0]}"
        sources.check_size(where, None, images.shape[:2], shape[:2], self._whose)
        self._take(shape)

        def tokens(number: int) -> np.ndarray:
            return self.cutting.tokens(with_channels(images.read(number), shape[2]))

        return LabelledSet(tokens, None, len(images), images.names)

    @property
    def to_record(self) -> dict[str, Any]:
        return {"source": self.images.path or self.images.name, "input": self.cutting.input, "patch": self.cutting.side}

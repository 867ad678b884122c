"""Sources of images: each gives images one by one, all of one size, with their class.

Legend: N images, H rows, W columns, c channels.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from longspan.config.errors import wrong_value
from longspan.data.errors import DataFileError
from longspan.data.labels import class_name, classes_of, sort_classes
from longspan.data.readers import Row

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Images:
    """N images and their class names.

    Attributes:
        read: called with a number below N, gives [H, W, c] uint8.
        labels: N class names; None where they are not known.
        names: N names.
        shape: (H, W, c).
        others: files among them that are no images.
        transparent: names of the images that have an alpha channel, which is not read.
        classes: the names of classes in their order, where the data says so.
        content: called with a number below N, gives the file of that image, or its pixels; None where images are not compared.
    """

    read: Callable[[int], np.ndarray]
    labels: list[str] | None
    names: list[str]
    shape: tuple[int, int, int]
    others: Sequence[Path] = ()
    transparent: Sequence[str] = ()
    content: Callable[[int], Path | bytes] | None = None
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)


def files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images below a folder, and other files, each sorted; hidden files and folders are neither."""
    images: list[Path] = []
    others: list[Path] = []
    for file in folder.rglob("*"):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            (images if file.suffix.lower() in SUFFIXES else others).append(file)
    return sorted(images), sorted(others)


def read_folder(folder: Path, shape: tuple[int, int, int] | None = None, labelled: bool = True) -> Images:
    """A folder with a folder of images a class; sizes are looked at in every file's header, images are read when needed.

    Not `labelled`, as to predict on: images lie anywhere in the folder.

    Raises:
        ConfigError: there are no images.
        DataFileError: a file is no image, or has another size than the others; an image lies outside of any class's folder; a
            class has no image.
    """
    files, others = files_below(folder)
    if not files:
        raise wrong_value("data.path", str(folder), f"the folder holds no images ({', '.join(SUFFIXES)})")
    labels = []
    for file in files:
        parts = file.relative_to(folder).parts
        if len(parts) < 2 and labelled:
            raise DataFileError(file, None, "the image is in no class's folder; put each class into a folder of its own")
        labels.append(parts[0])
    folders = {place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")}
    if labelled and (bare := sorted(folders - set(labels))):
        fix = f"the class has no image ({', '.join(SUFFIXES)}); give some, or remove its folder"
        raise DataFileError(folder / bare[0], None, fix)
    transparent: list[str] = []
    found = [header(file, transparent) for file in files]
    first = shape or (*found[0][:2], 3 if any(c == 3 for *_, c in found) else 1)
    for file, size in zip(files, found, strict=True):
        check_size(file, None, size[:2], first[:2])
    names = [file.relative_to(folder).as_posix() for file in files]
    known = labels if labelled else None
    return Images(lambda n: opened(files[n], first), known, names, first, others, transparent, files.__getitem__)


def check_size(
    path: Any, line: int | None, size: Sequence[int], wanted: Sequence[int], whose: str = "the ones before it"
) -> None:
    """Raises DataFileError where an image has another size than those before it, or than `whose` it has to have."""
    if tuple(size) != tuple(wanted):
        raise DataFileError(
            path,
            line,
            f"the image has {size[0]} x {size[1]} pixels, and {whose} {wanted[0]} x {wanted[1]}; scale all to one size first",
        )


def channels_of(image: Image.Image, path: Any, line: int | None = None) -> int:
    """1 of a grey image, else 3.

    Raises:
        DataFileError: pixels of more than 8 bits, which would be cut to 255, or several images in one file.
    """
    if image.mode.startswith(("I", "F")):
        raise DataFileError(path, line, f"the image has pixels of more than 8 bits (mode {image.mode}); scale them to 0 to 255")
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # cameras put a preview beside the photograph
    if frames > 1:
        raise DataFileError(path, line, f"the file holds {frames} images; give each a file of its own")
    return 1 if image.mode in ("1", "L", "LA") else 3


def has_alpha(image: Image.Image) -> bool:
    """Whether pixels have a transparency, which no token keeps."""
    return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info


def header(file: Path, transparent: list[str] | None = None) -> tuple[int, int, int]:
    """Rows, columns and channels of an image; a file with an alpha channel is added to `transparent`."""
    try:
        with Image.open(file) as image:
            if transparent is not None and has_alpha(image):
                transparent.append(str(file))
            return image.height, image.width, channels_of(image, file)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataFileError(file, None, f"is not an image that can be read ({error})") from error


def opened(file: Path | io.BytesIO, shape: tuple[int, int, int], where: Any = None) -> np.ndarray:
    try:
        with Image.open(file) as image:
            channels_of(image, where or str(file))
            pixels = np.asarray(image.convert(MODES[shape[2]]))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataFileError(where or str(file), None, f"is not an image that can be read ({error})") from error
    return pixels.reshape(*pixels.shape[:2], shape[2])


def of_array(array: np.ndarray, labels: np.ndarray | None, path: Path, key: str) -> Images:
    """Images [N, H, W] or [N, H, W, c] of uint8 (floats from 0 to 1 too), with N labels.

    Raises:
        DataFileError: another shape or dtype, or another number of labels.
    """
    if array.ndim not in (3, 4) or not len(array) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise DataFileError(path, None, f"{key} has shape {list(array.shape)}; images are [N, H, W] or [N, H, W, 1 or 3]")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataFileError(path, None, f"{key} holds {array.dtype}; give uint8 from 0 to 255, or floats from 0 to 1")
    if labels is not None and labels.reshape(-1).shape != (len(array),):
        raise DataFileError(path, None, f"{len(array)} images of {key} and labels of shape {list(labels.shape)}; give one each")
    shape = (array.shape[1], array.shape[2], array.shape[3] if array.ndim == 4 else 1)

    def read(number: int) -> np.ndarray:
        image = np.asarray(array[number]).reshape(shape)
        if image.dtype == np.uint8:
            return image
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise DataFileError(path, None, f"image {number} of {key} has numbers below 0 or above 1; scale them")
        return np.round(image * 255).astype(np.uint8)

    names = None if labels is None else [str(label) for label in labels.reshape(-1).tolist()]
    numbers = [str(n) for n in range(len(array))]
    return Images(read, names, numbers, shape, content=lambda n: read(n).tobytes())


def read_archive(path: Path) -> dict[str, Images]:
    """An .npz: arrays `images` and `labels`, or of each split (`train_images`, `train_labels`, as MedMNIST has them; `x_train`,
    `y_train`, as Keras has them). An .npy: images, beside a file of the same name that ends in `_labels.npy`.

    Raises:
        DataFileError: the arrays are not there, or not images.
    """
    try:
        if path.suffix == ".npy":
            beside = path.with_name(f"{path.stem}_labels.npy")
            labels = np.load(beside) if beside.is_file() else None
            return {"train": of_array(np.load(path, mmap_mode="r"), labels, path, "the array")}
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except DataFileError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataFileError(path, None, f"is no array file that can be read ({error})") from error
    found = {}
    for split, words in SPLIT_WORDS.items():
        for word in words:
            for x, y in ((f"{word}_images", f"{word}_labels"), (f"x_{word}", f"y_{word}"), (f"{word}_x", f"{word}_y")):
                if x in arrays:
                    found[split] = of_array(arrays[x], arrays.get(y), path, x)
    if not found and "images" in arrays:
        found["train"] = of_array(arrays["images"], arrays.get("labels"), path, "images")
    if "train" not in found:
        held = ", ".join(arrays) or "none"
        raise DataFileError(
            path, None, f"has no images and labels, and no train_images and train_labels; its arrays are {held}"
        )
    return found


def read_cifar(folder: Path, files: Sequence[Path]) -> Images:
    """CIFAR-10's binary files: records of a label byte and 3 x 32 x 32 bytes, red first.

    Raises:
        DataFileError: a file is no whole number of records.
    """
    parts = []
    for file in files:
        raw = np.fromfile(file, dtype=np.uint8)
        if not len(raw) or len(raw) % 3073 or raw[::3073].max() > 9:
            raise DataFileError(file, None, "is no file of CIFAR-10 records of 3,073 bytes with a label from 0 to 9")
        parts.append(raw.reshape(-1, 3073))
    records = np.concatenate(parts)
    meta = folder / "batches.meta.txt"
    names = meta.read_text().split() if meta.is_file() else [str(n) for n in range(10)]
    pixels = records[:, 1:].reshape(-1, 3, 32, 32)
    labels = [names[n] for n in records[:, 0]]
    numbers = [str(n) for n in range(len(records))]
    return Images(lambda n: pixels[n].transpose(1, 2, 0), labels, numbers, (32, 32, 3), content=lambda n: pixels[n].tobytes())


def read_hub_images(rows: Sequence[Row], image_column: str, label_column: str, known: Collection[str] | None = None) -> Images:
    """Rows of a `datasets` data set with an image column; sizes are looked at in every row, images are read when needed.

    `known`: the classes, where they are (see `longspan.data.labels.class_name`).

    Raises:
        DataFileError: an image cannot be read, or has another size than the first.
    """
    transparent: list[str] = []
    sizes = [_size(row, image_column, transparent) for row in rows]
    shape = (*sizes[0][:2], 3 if any(channels == 3 for *_, channels in sizes) else 1)
    for row, size in zip(rows, sizes, strict=True):
        check_size(row.path, row.line, size[:2], shape[:2])

    def read(number: int) -> np.ndarray:
        image = _image(rows[number], image_column)
        pixels = np.asarray(image.convert(MODES[shape[2]]) if isinstance(image, Image.Image) else image, dtype=np.uint8)
        if pixels.ndim == 2 and shape[2] == 3:
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        return pixels.reshape(shape)

    labels = [str(class_name(row, label_column, row.get(label_column, "label_column"), known)) for row in rows]
    names, classes = [str(row.line) for row in rows], classes_of(rows, label_column)
    return Images(read, labels, names, shape, transparent=transparent, classes=classes)


def _image(row: Any, column: str) -> Any:
    """The image of a row: one of PIL, whose pixels may be unread, or an array."""
    image = row.get(column, "image_column")
    if isinstance(image, dict):
        try:
            return Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") else image["path"])
        except (UnidentifiedImageError, OSError, TypeError, KeyError, Image.DecompressionBombError) as error:
            raise DataFileError(row.path, row.line, f"column {column!r} holds no image that can be read ({error})") from error
    return image if isinstance(image, Image.Image) else np.asarray(image)


def _size(row: Any, column: str, transparent: list[str]) -> tuple[int, int, int]:
    """Rows, columns and channels of a row's image; a row whose image has an alpha channel is added to `transparent`."""
    image = _image(row, column)
    if isinstance(image, Image.Image):
        if has_alpha(image):
            transparent.append(f"{row.path}, row {row.line}")
        return image.height, image.width, channels_of(image, row.path, row.line)
    if np.issubdtype(image.dtype, np.floating) or (image.size and (image.min() < 0 or image.max() > 255)):
        fix = f"column {column!r} holds {image.dtype} from {image.min()} to {image.max()}; give whole numbers from 0 to 255"
        raise DataFileError(row.path, row.line, fix)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        fix = f"column {column!r} holds an array of shape {list(image.shape)}; images are [H, W] or [H, W, 1 or 3]"
        raise DataFileError(row.path, row.line, fix)
    return image.shape[0], image.shape[1], image.shape[2] if image.ndim == 3 else 1


def sorted_classes(images: Images) -> list[str]:
    """The class names that images have, in the data's own order, else see `sort_classes`."""
    return sort_classes(images.labels or (), images.classes)

"""Images as tokens: pixels and patches of folders, arrays and published files, and images of unequal size named."""

from pathlib import Path

import numpy as np
import published_files
import pytest
from PIL import Image

from longspan.config.errors import ConfigError
from longspan.data import ImageClassificationDataModule
from longspan.data.errors import DataFileError
from longspan.data.images.equal import BEGINNING, marks
from longspan.data.images.sources import read_hub_images
from longspan.data.images.tokens import Cutting
from longspan.data.readers import Row


def test_patches_are_squares_row_by_row():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    tokens = Cutting(patch=2).tokens(image)
    assert tokens.shape == (6, 12)
    assert tokens[4].tolist() == image[2:4, 2:4].reshape(-1).tolist()
    assert Cutting(input="pixels").tokens(image[:, :, :1]).tolist() == image[:, :, 0].reshape(-1).tolist()
    assert Cutting(patch=2, grey=True).tokens(image).shape == (6, 4)
    with pytest.raises(ConfigError, match=r"data.patch=5: images of 4 x 6 pixels are not filled by it; one of \[1, 2\]"):
        Cutting(patch=5).grid(4, 6)


def test_a_folder_a_class(tmp_path):
    data = ImageClassificationDataModule(str(published_files.images(tmp_path)), patch=4, batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == (4, 16, 48) and str(batch["tokens"].dtype) == "torch.uint8"
    assert (data.grid, data.max_length, data.vocab_size, data.patches) == ((4, 4), 16, 48, True)
    assert data.class_names == ["bright", "dark"] and data.describe()["train"]["sequences"] == 16
    names = [data.split(split)[n]["id"] for split in ("train", "validation", "test") for n in range(len(data.split(split)))]
    assert len(set(names)) == 20  # every image in one split


def test_equal_images_stay_in_one_split(tmp_path):
    random = np.random.default_rng(0)
    images = np.repeat(random.integers(0, 256, (12, 8, 8), dtype=np.uint8), 3, axis=0)
    np.savez(tmp_path / "x.npz", images=images, labels=np.repeat(np.arange(2), 18))
    data = ImageClassificationDataModule(str(tmp_path / "x.npz"), input="pixels", validation_fraction=0.2, test_fraction=0.2)
    held = {
        split: {data.split(split)[n]["tokens"].tobytes() for n in range(len(data.split(split)))}
        for split in ("train", "validation", "test")
    }
    assert not held["train"] & held["validation"] and not held["train"] & held["test"] and not held["test"] & held["validation"]
    assert data.vocab_size == 260 and data.max_length == 64


@pytest.mark.parametrize("kind", ["folder", "npz", "cifar"])
def test_given_images_that_are_in_training_too_are_counted(tmp_path, kind, capsys):
    path = tmp_path
    if kind == "folder":
        for split in ("train", "val", "test"):  # alike but for their names: the same generator draws all
            published_files.images(tmp_path / split, each=3 if split == "test" else 6)
        for number in range(5):  # the sixth is the training's, in another class
            flat = np.full((16, 16, 3), 10 + number, dtype=np.uint8)
            Image.fromarray(flat).save(tmp_path / "val" / "dark" / f"{number}.png")
            Image.fromarray(flat + 99).save(tmp_path / "val" / "bright" / f"{number}.png")
        (tmp_path / "val" / "bright" / "5.png").unlink()
        right = {"validation": 1, "test": 3}  # the bright ones, which are drawn first
    elif kind == "npz":
        x = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        y = np.arange(20) % 2
        path = tmp_path / "x.npz"
        held = np.concatenate([x[:3], x[:4] ^ 1])
        np.savez(path, x_train=x, y_train=y, x_val=x[:4] ^ 1, y_val=y[:4], x_test=held, y_test=y[:7])
        right = {"validation": 0, "test": 3}
    else:
        published_files.cifar(tmp_path)
        records = np.fromfile(tmp_path / "test_batch.bin", dtype=np.uint8).reshape(-1, 3073)
        records[:2] = np.fromfile(tmp_path / "data_batch_2.bin", dtype=np.uint8).reshape(-1, 3073)[4:6]
        records.tofile(tmp_path / "test_batch.bin")
    data = ImageClassificationDataModule(str(path), patch=4, validation_fraction=0.1)
    said = data.describe()
    if kind == "cifar":  # images 24 and 25 of training, unless they are held out of it
        ids = {data.split("train")[n]["id"] for n in range(len(data.split("train")))}
        right = {"test": len(ids & {"24", "25"})}
        assert right["test"] > 0
    assert {split: said[split].get("in_training", 0) for split in right} == right
    told = capsys.readouterr().err
    assert all((f"images of the {split} split are in training too" in told) == (count > 0) for split, count in right.items())


def test_files_of_other_sizes_or_beginnings_are_not_read_whole(tmp_path, monkeypatch):
    head = bytes(BEGINNING)
    contents = {"a": head + b"one", "b": head + b"two", "c": b"x" * 5000, "d": head + b"one", "e": b"y" * 5000, "f": b"short"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    read, whole = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self.name) or whole(self))
    found = marks({"train": [tmp_path / name for name in "abc"], "test": [tmp_path / name for name in "def"]})
    assert [key in set(found["train"]) for key in found["test"]] == [True, False, False]
    assert sorted(read) == ["a", "b", "d"]


def test_given_splits_and_arrays_as_others_write_them(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    y = np.array([0, 1, 0, 1, 0, 1])[:, None]
    np.savez(
        tmp_path / "medmnist.npz",
        train_images=x,
        train_labels=y,
        val_images=x[:2],
        val_labels=y[:2],
        test_images=x[2:4],
        test_labels=y[2:4],
    )
    data = ImageClassificationDataModule(str(tmp_path / "medmnist.npz"), patch=4)
    assert [data.describe()[split]["sequences"] for split in ("train", "validation", "test")] == [6, 2, 2]
    np.savez(tmp_path / "keras.npz", x_train=x / 255.0, y_train=y, x_test=x[:3] / 255.0, y_test=y[:3])
    keras = ImageClassificationDataModule(str(tmp_path / "keras.npz"), patch=4, validation_fraction=0.3)
    assert np.array_equal(keras.split("test")[0]["tokens"], data.split("train")[0]["tokens"])
    np.save(tmp_path / "plain.npy", x)
    np.save(tmp_path / "plain_labels.npy", y[:, 0])
    assert ImageClassificationDataModule(
        str(tmp_path / "plain.npy"), patch=4, validation_fraction=0.3, test_fraction=0.3
    ).grid == (2, 2)


def test_cifars_binary_files(tmp_path):
    folder = published_files.cifar(tmp_path)
    data = ImageClassificationDataModule(str(folder), input="pixels", validation_fraction=0.25)
    assert data.grid == (32, 32) and data.max_length == 1024 and data.class_names[:2] == ["airplane", "automobile"]
    record = np.fromfile(folder / "test_batch.bin", dtype=np.uint8)[:3073]
    red, green, blue = record[1:].reshape(3, 1024).astype(float)
    expected = np.round(0.299 * red + 0.587 * green + 0.114 * blue)
    assert np.abs(data.split("test")[0]["tokens"] - expected).max() <= 1
    (folder / "data_batch_2.bin").write_bytes(b"\x00" * 100)
    with pytest.raises(DataFileError, match=r"data_batch_2.bin: is no file of CIFAR-10 records"):
        ImageClassificationDataModule(str(folder), input="pixels").setup()


def test_what_is_said_of_wrong_images(tmp_path):
    folder = published_files.images(tmp_path / "a")
    Image.new("RGB", (20, 16)).save(folder / "dark" / "wide.png")
    with pytest.raises(DataFileError, match=r"wide.png: the image has 16 x 20 pixels, and the ones before it 16 x 16"):
        ImageClassificationDataModule(str(folder), patch=4).setup()
    (folder / "dark" / "wide.png").write_bytes(b"no image")
    with pytest.raises(DataFileError, match=r"wide.png: is not an image that can be read"):
        ImageClassificationDataModule(str(folder), patch=4).setup()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no images"):
        ImageClassificationDataModule(str(tmp_path / "empty")).setup()
    Image.new("L", (4, 4)).save(tmp_path / "empty" / "loose.png")
    with pytest.raises(DataFileError, match=r"loose.png: the image is in no class's folder"):
        ImageClassificationDataModule(str(tmp_path / "empty")).setup()
    np.savez(tmp_path / "odd.npz", pictures=np.zeros(3))
    with pytest.raises(DataFileError, match=r"odd.npz: has no images and labels.* its arrays are pictures"):
        ImageClassificationDataModule(str(tmp_path / "odd.npz")).setup()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "odd.npz").read_bytes()[:-20])
    with pytest.raises(DataFileError, match=r"cut.npz: is no array file that can be read"):
        ImageClassificationDataModule(str(tmp_path / "cut.npz")).setup()
    np.savez(tmp_path / "few.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.zeros(2))
    with pytest.raises(DataFileError, match=r"3 images of images and labels of shape \[2\]"):
        ImageClassificationDataModule(str(tmp_path / "few.npz")).setup()
    with pytest.raises(ConfigError, match="path"):
        ImageClassificationDataModule().setup()


def test_a_million_pixels_are_16384_patches():
    image = np.zeros((1024, 1024, 3), dtype=np.uint8)
    assert Cutting(patch=8).tokens(image).shape == (16384, 192)


def test_nothing_in_a_folder_is_left_out_in_silence(tmp_path, capsys):
    folder = published_files.images(tmp_path)
    (folder / "dark" / "notes.txt").write_text("not an image")
    (folder / "dark" / ".hidden.png").write_text("not an image either")
    data = ImageClassificationDataModule(str(folder), patch=4)
    assert data.describe()["train"]["sequences"] == 16
    said = capsys.readouterr().err
    assert "1 files that are no images left out, first" in said and "notes.txt" in said and "hidden" not in said
    (folder / "odd").mkdir()
    with pytest.raises(DataFileError, match=r"odd: the class has no image .*remove its folder"):
        ImageClassificationDataModule(str(folder), patch=4).setup()


def test_pixels_that_would_be_cut_and_files_of_several_images(tmp_path):
    folder = published_files.images(tmp_path)
    Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16)).save(folder / "dark" / "deep.png")
    with pytest.raises(DataFileError, match=r"deep.png: the image has pixels of more than 8 bits"):
        ImageClassificationDataModule(str(folder), patch=4).setup()
    (folder / "dark" / "deep.png").unlink()
    frames = [Image.new("L", (16, 16), shade) for shade in (0, 200)]
    frames[0].save(folder / "dark" / "two.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataFileError, match=r"two.gif: the file holds 2 images; give each a file of its own"):
        ImageClassificationDataModule(str(folder), patch=4).setup()


@pytest.mark.parametrize("image", [[[0, 256]], [[0.5, 0.25]], [[-1, 3]]])
def test_arrays_of_a_table_that_are_no_bytes(image):
    row = Row("a/b", 3, {"image": image, "label": "x"})
    with pytest.raises(DataFileError, match=r"a/b, line 3: column 'image' holds .*; give whole numbers from 0 to 255"):
        read_hub_images([row], "image", "label")


@pytest.mark.parametrize(("mode", "numbers"), [("LA", 16), ("RGBA", 48), ("L", 16)])
def test_alpha_channels_are_left_out_and_counted(tmp_path, capsys, mode, numbers):
    values = np.random.default_rng(0).integers(0, 255, (20, 8, 8, len(mode)), dtype=np.uint8)
    for n, pixels in enumerate(values):
        (tmp_path / "ab"[n % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels.squeeze(), mode).save(tmp_path / "ab"[n % 2] / f"{n:02}.png")
    data = ImageClassificationDataModule(str(tmp_path), patch=4, validation_fraction=0.2, test_fraction=0.2)
    assert data.vocab_size == numbers
    left = {"alpha channels of images": 20} if "A" in mode else None
    assert data.describe().get("left_out") == left
    said = f"data: 20 alpha channels of images left out, first {tmp_path / 'a' / '00.png'}" if left else ""
    assert capsys.readouterr().err.strip() == said


def test_arrays_of_wrong_rank_and_without_labels(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((8, 8), dtype=np.uint8))
    with pytest.raises(DataFileError, match=r"^\S*flat\.npy: the array has shape \[8, 8\]; images are"):
        ImageClassificationDataModule(str(tmp_path / "flat.npy")).setup()
    np.save(tmp_path / "bare.npy", np.zeros((9, 8, 8), dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"bare\.npy'.*no labels; .* beside NAME\.npy an array NAME_labels\.npy"):
        ImageClassificationDataModule(str(tmp_path / "bare.npy")).setup()


def test_images_to_predict_on_are_read_as_those_of_training(tmp_path, capsys):
    def folder(name, shape):
        (tmp_path / name).mkdir()
        for n in range(3):
            Image.fromarray(np.full(shape, 40 * n, dtype=np.uint8)).save(tmp_path / name / f"{n}.png")
        return str(tmp_path / name)

    trained = {"grid": [4, 2], "patches": True, "vocab_size": 12, "max_length": 8}  # 8 x 4 pixels in colour
    grey = ImageClassificationDataModule(folder("grey", (8, 4)), patch=2)
    grey.take_facts(trained)
    [batch] = grey.predict_dataloader()  # no folder of a class is needed
    assert batch["tokens"].shape == (3, 8, 12) and batch["tokens"][2].unique().tolist() == [80] and batch["ids"][0] == "0.png"
    for shape in ((4, 8), (4, 4, 3)):
        other = ImageClassificationDataModule(folder(f"other{len(shape)}", shape), patch=2)
        other.take_facts(trained)
        with pytest.raises(DataFileError, match=r"0\.png: the image has 4 x \d pixels, and those of training 8 x 4; scale"):
            other.predict_dataloader()
    [batch] = grey.given_dataloader([np.full((8, 4), 7), np.full((8, 4, 3), 9)])
    assert batch["tokens"].shape == (2, 8, 12)

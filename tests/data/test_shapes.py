"""Images of shapes: the figure that prevails is what the label says, by its area; drawn alike each time, and splits differ."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from longspan.config.errors import ConfigError
from longspan.data import ShapesDataModule
from longspan.data.images.shapes import CLASSES, Shapes, corners

SIZES = {"train_examples": 24, "validation_examples": 6, "test_examples": 6, "batch_size": 4}
SMALL = {"side": 64, "patch": 8, "line": 1, "radius": 10.0, **SIZES}


def rounded_area(image: np.ndarray) -> float:
    """The convex hull's area, of that of the circle about it."""
    points = np.argwhere(image[:, :, 0] > 0).astype(float)
    hull = ConvexHull(points)
    corner = points[hull.vertices]
    radius = max(np.linalg.norm(a - corner, axis=1).max() for a in corner) / 2
    return hull.volume / (np.pi * radius**2)


def test_an_outline_is_the_figure_that_the_label_names():
    look = Shapes(side=256, figures=1, radius=80.0, line=1, noise=0)
    # of a polygon of k corners: its area, and the largest distance between two of them
    expected = {}
    for k, name in ((3, "triangle"), (4, "square"), (5, "pentagon"), (6, "hexagon")):
        longest = max(2 * np.sin(np.pi * n / k) for n in range(1, k)) / 2
        expected[name] = k / (2 * np.pi) * np.sin(2 * np.pi / k) / longest**2
    expected |= {"circle": 1.0, "star": expected["pentagon"]}
    drawn = dict.fromkeys(CLASSES, 0)
    for number in range(40):
        name = CLASSES[look.label(0, "train", number)]
        image = look.image(0, "train", number)
        drawn[name] += 1
        assert rounded_area(image) == pytest.approx(expected[name], abs=0.03), (number, name)
    assert all(drawn.values())


def test_a_star_has_notches_that_a_pentagon_has_not():
    look = Shapes(side=256, figures=1, radius=80.0, line=1, noise=0)
    ink = {name: [] for name in ("star", "pentagon")}
    for number in range(60):
        name = CLASSES[look.label(0, "train", number)]
        if name in ink:
            points = np.argwhere(look.image(0, "train", number)[:, :, 0] > 0)
            middle = (points.max(0) + points.min(0)) / 2
            distance = np.linalg.norm(points - middle, axis=1)
            ink[name].append(distance.min() / distance.max())
    assert max(ink["star"]) < 0.5 < min(ink["pentagon"])
    assert len(corners("star")) == 10 and len(corners("hexagon")) == 6


def test_the_class_has_its_share_and_the_others_come_from_all_others(monkeypatch):
    drawn = []
    monkeypatch.setattr(Shapes, "_outline", lambda self, draw, random, name: drawn.append(name))
    look = Shapes(figures=40, share=0.5, noise=0)
    for number in range(4):
        drawn.clear()
        look.image(0, "train", number)
        name = CLASSES[look.label(0, "train", number)]
        assert drawn[:20] == [name] * 20 and name not in drawn[20:] and set(drawn[20:]) | {name} == set(CLASSES)


def test_images_are_functions_of_seed_split_and_number():
    look = Shapes(side=64, radius=10.0)
    first = look.image(0, "train", 3)
    assert first.shape == (64, 64, 1) and first.dtype == np.uint8
    assert (look.image(0, "train", 3) == first).all()
    for other in ((1, "train", 3), (0, "test", 3), (0, "train", 4)):
        assert (look.image(*other) != first).any()
    assert look.image(0, "train", 3).max() >= 128 and Shapes(side=64, radius=10.0, noise=0).image(0, "train", 3).max() == 128


def test_the_data_module_gives_patches_and_their_classes():
    data = ShapesDataModule(**SMALL)
    batch = next(iter(data.val_dataloader()))
    assert batch["tokens"].shape == (4, 64, 64) and data.grid == (8, 8) and data.class_names == list(CLASSES)
    assert batch["labels"].tolist() == [data.look.label(0, "validation", n) for n in range(4)]
    image = data.look.image(0, "validation", 1)
    assert (batch["tokens"][1, 9].numpy() == image[8:16, 8:16, 0].reshape(-1)).all()
    assert data.describe()["source"] == "made: shapes" and data.describe()["train"]["sequences"] == 24


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"line": 17}, r"data.line=17: give at most 16 pixels, half of data.radius"),
        ({"share": 0.2}, r"data.share=0.2: give more than 0.2"),
        ({"side": 64}, r"data.radius=32.0: give 2 to 22.8571 pixels"),
        ({"noise": 200}, r"data.noise=200: give at most 127"),
        ({"side": 8}, r"data.side=8"),
        ({"side": 100, "patch": 8, "radius": 20.0, "train_examples": 2}, r"data.patch=8: images of 100 x 100 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(keys, said):
    with pytest.raises(ConfigError, match=said):
        ShapesDataModule(**keys).setup()


def test_there_are_no_files_to_predict_on(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from longspan.inference import predict

    config = {"data": {"_target_": "longspan.data.ShapesDataModule"}}
    monkeypatch.setattr(predict, "rebuild", lambda *_: SimpleNamespace(config=config))
    with pytest.raises(ConfigError, match=r"\(ShapesDataModule\) are made up; there are no files of it to predict on"):
        predict.predict("last.ckpt", [], tmp_path, str(tmp_path / "out.csv"))

"""Long Range Arena: generators to the specification, the published files' layouts, and what is said of wrong ones."""

import ast
from collections import deque
from pathlib import Path

import numpy as np
import published_files
import pytest

from longspan.config.errors import ConfigError
from longspan.data import ListOpsDataModule, PathfinderDataModule, RetrievalDataModule
from longspan.data.cache import built
from longspan.data.errors import DataFileError
from longspan.data.lra.listops import OPERATIONS, TOKENS, ListOps, value_of
from longspan.data.lra.pathfinder import Pathfinder

SMALL = {"train_examples": 12, "validation_examples": 4, "test_examples": 4}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))


def evaluated(tokens: list[str]) -> int:
    """The value of an expression by Python's own parser and functions."""
    text = "".join(
        {"[MIN": "min_(", "[MAX": "max_(", "[MED": "med_(", "[SM": "sum_(", "]": "),"}.get(t, f"{t},") for t in tokens
    )

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return int(node.value)
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        found = [value(argument) for argument in node.args]
        kinds = {"min_": min, "max_": max, "med_": lambda x: int(np.median(x)), "sum_": lambda x: sum(x) % 10}
        return int(kinds[node.func.id](found))

    tree = ast.parse(text.rstrip(","), mode="eval").body
    return value(tree)


def test_expressions_are_of_the_specification_and_come_to_their_value():
    kind, depths, arguments = ListOps(min_tokens=50, max_tokens=400), [], []
    for number in range(60):
        tokens, value = kind.expression(0, "train", number)
        words = [TOKENS[n] for n in tokens]
        assert 50 < len(words) < 400 and evaluated(words) == value == value_of(words)
        stack: list[int] = []
        deepest = 0
        for word in words:
            if word == "]":
                arguments.append(stack.pop())
            if stack and word not in OPERATIONS:
                stack[-1] += 1
            if word in OPERATIONS:
                if stack:
                    stack[-1] += 0
                stack.append(0)
                deepest = max(deepest, len(stack))
        depths.append(deepest)
    assert max(depths) <= 9 and len(set(depths)) > 3  # operations stand above the tenth level, which is digits


def test_an_expression_is_a_function_of_seed_split_and_number():
    kind = ListOps(min_tokens=5, max_tokens=90)
    again = ListOps(min_tokens=5, max_tokens=90)
    first = kind.expression(3, "train", 7)[0]
    assert np.array_equal(first, again.expression(3, "train", 7)[0])
    others = [kind.expression(*place)[0] for place in ((4, "train", 7), (3, "test", 7), (3, "train", 8))]
    assert not any(np.array_equal(first, other) for other in others)


def test_the_specification_of_the_paper_is_the_default():
    assert ListOps() == ListOps(max_depth=10, max_arguments=10, min_tokens=500, max_tokens=2000)
    tokens, _ = ListOps().expression(0, "test", 0)
    assert 500 < len(tokens) < 2000
    data = ListOpsDataModule()
    sizes = data.sizes
    assert (sizes.train_examples, sizes.validation_examples, sizes.test_examples) == (96_000, 2_000, 2_000)


def test_listops_is_made_once_and_read_from_published_files(tmp_path):
    settings = {"min_tokens": 5, "max_tokens": 60, "max_length": 60, "batch_size": 4, **SMALL}
    data = ListOpsDataModule(**settings)
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == (4, 60) and batch["labels"].max() < 10
    for tokens, length, label in zip(batch["tokens"], batch["lengths"], batch["labels"], strict=True):
        assert value_of(data.vocabulary.decode(tokens[: int(length)].tolist()).split()) == int(label)
    assert len(list((tmp_path / "cache").glob("listops-*/train.tokens.npy"))) == 1
    same = ListOpsDataModule(**settings)
    assert np.array_equal(data.split("test")[0]["tokens"], same.split("test")[0]["tokens"])
    folder = tmp_path / "published"
    folder.mkdir()
    read = ListOpsDataModule(str(published_files.listops(folder)), max_length=60)
    assert read.describe()["train"]["sequences"] == 8 and read.baselines()["accuracy"] > 0
    short = ListOpsDataModule(str(folder), max_length=4)  # fewer tokens than any has
    assert short.describe()["train"]["cut"] == 8 and all(len(item["tokens"]) == 4 for item in short.split("train"))
    wrong = folder / "basic_test.tsv"
    lines = wrong.read_text().splitlines()
    lines[2] = lines[2].rpartition("\t")[0] + f"\t{(int(lines[2][-1]) + 1) % 10}"
    wrong.write_text("\n".join(lines))
    with pytest.raises(DataFileError, match=r"basic_test.tsv, line 3: the target is .* comes to"):
        ListOpsDataModule(str(folder), max_length=60).setup()
    wrong.unlink()
    with pytest.raises(ConfigError, match=r"has no basic_test\.tsv"):
        ListOpsDataModule(str(folder), max_length=60).setup()


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built("thing", {"a": 1}, build)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    whole = built("thing", {"a": 1}, lambda folder: (folder / "whole").touch())
    assert (whole / "whole").exists() and built("thing", {"a": 1}, build) == whole
    assert built("thing", {"a": 2}, lambda folder: None) != whole


def joined_by_ink(image: np.ndarray) -> bool:
    """Whether the two dots are joined by pixels that are not black, steps over the gaps of dashes allowed."""
    side = len(image)
    dots = np.argwhere(_sums(image) >= 0.85 * _sums(image).max())
    first = tuple(dots[0])
    last = tuple(dots[np.abs(dots - dots[0]).sum(1).argmax()])
    seen, waiting = {first}, deque([first])
    while waiting:
        y, x = waiting.popleft()
        for v in range(max(0, y - 2), min(side, y + 3)):
            for u in range(max(0, x - 2), min(side, x + 3)):
                if (v, u) not in seen and image[v, u] > 60:
                    seen.add((v, u))
                    waiting.append((v, u))
    return last in seen


def _sums(image: np.ndarray) -> np.ndarray:
    padded = np.pad(image.astype(float), 1)
    return sum(padded[a : a + len(image), b : b + len(image)] for a in range(3) for b in range(3))


def test_pathfinder_is_what_a_flood_finds():
    """With clear gaps between curves, ink alone tells the classes apart: a flood from one dot reaches the other or not."""
    look = Pathfinder(side=48, dashes=7, distractors=2, clearance=6.0, gap=1.0)
    images = [look.image(0, "train", number) for number in range(24)]
    right = [joined_by_ink(image) == bool(label) for image, label in images]
    assert np.mean(right) > 0.9
    assert 4 < sum(label for _, label in images) < 20
    # The classes have as much ink: the sum of an image tells nothing.
    ink = [np.mean([image.mean() for image, label in images if label == kind]) for kind in (0, 1)]
    assert abs(ink[0] - ink[1]) < 0.06 * ink[0]


def test_pathfinder_draws_the_same_again_and_refuses_what_does_not_fit():
    one, two = (Pathfinder(side=24, dashes=3).image(5, "test", 3) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and one[1] == two[1] and one[0].max() == 255
    with pytest.raises(ConfigError, match="curves would fill"):
        Pathfinder(side=16, dashes=9)
    data = PathfinderDataModule(side=20, dashes=3, distractors=1, batch_size=3, **SMALL)
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == (3, 400) and data.grid == (20, 20) and data.max_length == 400 and not data.patches
    assert data.class_names == ["apart", "joined"]


def test_pathfinder_reads_published_images(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "imgs" / "0").mkdir(parents=True)
    from PIL import Image

    rows = []
    for number in range(20):
        image, label = Pathfinder(side=16, dashes=2, distractors=0).image(0, "train", number)
        Image.fromarray(image).save(tmp_path / "imgs" / "0" / f"sample_{number}.png")
        rows.append(f"imgs/0 sample_{number}.png {number} {label} 1 2 3")
    (tmp_path / "metadata" / "0.npy").write_text("\n".join(rows))
    data = PathfinderDataModule(str(tmp_path), batch_size=2)
    assert sum(data.describe()[split]["sequences"] for split in ("train", "validation", "test")) == 20
    assert next(iter(data.val_dataloader()))["tokens"].shape[1] == 256
    (tmp_path / "metadata" / "0.npy").write_text("imgs/0 sample_0.png 0 7")
    with pytest.raises(DataFileError, match=r"line 1: the row is not"):
        PathfinderDataModule(str(tmp_path)).setup()


def test_retrieval_reads_published_pairs(tmp_path):
    data = RetrievalDataModule(str(published_files.retrieval(tmp_path)), max_length=64, batch_size=3)
    batch = next(iter(data.test_dataloader()))
    assert batch["tokens"].shape == (6, 64) and batch["labels"].tolist() == [0, 1, 0]
    texts = [data.vocabulary.decode(row[:n].tolist()) for row, n in zip(batch["tokens"], batch["lengths"], strict=True)]
    assert texts[:2] == ["test paper 0 on parsing", "another 0"]
    file = tmp_path / "new_aan_pairs.eval.tsv"
    file.write_text("1.0\ta\tb\tonly one text\n2\ta\tb\tx\ty\n")
    with pytest.raises(DataFileError, match=r"eval.tsv, line 1: 4 columns; a pair has 5.*and 1 more"):
        RetrievalDataModule(str(tmp_path), max_length=64).setup()
    with pytest.raises(ConfigError, match="path"):
        RetrievalDataModule().setup()

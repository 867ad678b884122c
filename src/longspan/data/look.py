"""A look at data: examples as a reader knows them, lengths and labels of each split, as text and as a picture.

Legend: N sequences that are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longspan.data.batches import IGNORED
from longspan.data.pair_sets import PairDataset, TokenPair
from longspan.data.splits import SPLITS

MOST = 2000  # sequences of a split that are looked at, evenly spaced
MOST_LABELS = 20  # that are drawn
MOST_IMAGES = 16  # of a split that are drawn
MOST_OF_TRACKS = 64  # where each has numbers along it
FINEST = 1024, 64  # bins and tracks that are drawn
WIDE = 160  # characters of an example that are shown


@dataclass
class Look:
    """What a look at a split found.

    Attributes:
        split: its name. size: its sequences, of which `lengths` has those that were looked at.
        target_lengths: of pairs, those of the targets.
        examples: (what it is called or its label, the decoded text).
        images: [rows, columns] or [rows, columns, 3] uint8, of data that are images.
        labels: how often each label occurs among those looked at.
        numbers: of targets that are numbers, those by name; tracks along a sequence are one name.
    """

    split: str
    size: int
    lengths: np.ndarray
    target_lengths: np.ndarray | None = None
    examples: list[tuple[str, str]] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    labels: Counter = field(default_factory=Counter)
    numbers: dict[str, list[np.ndarray]] = field(default_factory=dict)


def looked(module: Any, examples: int = 3) -> list[Look]:
    """Every split of a data module after its `setup`."""
    return [_of_split(module, split, examples) for split in SPLITS]


def _of_split(module: Any, split: str, examples: int) -> Look:
    data = module.split(split)
    if isinstance(data, PairDataset):
        return _of_pairs(module, split, data.pairs, examples)
    most = MOST_OF_TRACKS if hasattr(module, "tracks") else MOST
    chosen = np.linspace(0, len(data) - 1, min(len(data), most)).round().astype(int).tolist()
    look = Look(split, len(data), np.zeros(len(chosen), dtype=np.int64))
    told, seen = (_some(len(chosen), count) for count in (examples, MOST_IMAGES))
    for place, number in enumerate(chosen):
        item = data[number]
        look.lengths[place] = _length(item["tokens"])
        for name in _labels(module, item):
            look.labels[name] += 1
        for name, numbers in _numbers(module, item).items():
            look.numbers.setdefault(name, []).append(numbers)
        if place in told:
            look.examples.append((_named(module, item), _text(module, item["tokens"])))
        if place == 0 and hasattr(module, "tracks"):
            look.images.append(_map(item["target"], module.tasks[0] == "contact_regression"))
        if place in seen and getattr(module, "grid", None) is not None and not isinstance(item["tokens"], list):
            look.images.append(_image(module, np.asarray(item["tokens"])))
    return look


def _of_pairs(module: Any, split: str, pairs: list[TokenPair], examples: int) -> Look:
    """Sources and targets, one by one also where several are packed into a row; lengths are the sources'."""
    chosen = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST)).round().astype(int).tolist()
    lengths, targets = (np.array([len(side) for side in sides], dtype=np.int64) for sides in _sides(pairs, chosen))
    look = Look(split, len(pairs), lengths, targets)
    for place in sorted(_some(len(chosen), examples)):
        number = chosen[place]
        look.examples.append(("", f"{_text(module, pairs[number].source)} -> {_plain(pairs[number].reference)}"))
    return look


def _some(count: int, most: int) -> set[int]:
    """At most so many places below `count`, evenly spaced: what is sorted by class shows several."""
    return set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())


def _sides(pairs: list[TokenPair], chosen: list[int]) -> tuple[list[Any], list[Any]]:
    return [pairs[number].source for number in chosen], [pairs[number].target for number in chosen]


def _named(module: Any, item: dict) -> str:
    """What stands before an example: its labels, or its numbers."""
    if numbers := _numbers(module, item):
        return ", ".join(f"{name} {value[0]:g}" for name, value in list(numbers.items())[:8] if len(value) == 1)
    return ", ".join(_labels(module, item)[:8])


def _numbers(module: Any, item: dict) -> dict[str, np.ndarray]:
    """The numbers of an item whose target is numbers, by name; those that are known."""
    if not np.issubdtype(np.asarray(item.get("target", 0)).dtype, np.floating) or getattr(module, "multi_label", False):
        return {}
    target = np.asarray(item["target"])
    if target.ndim > 1:
        return {"numbers": target[~np.isnan(target)]}
    return {name: target[n : n + 1] for n, name in enumerate(module.class_names)}


def _map(target: np.ndarray, pairs: bool) -> np.ndarray:
    """Numbers along a sequence as grey: a track a row; of pairs of bins the first track's map."""
    if pairs:
        bins = (3 + round((1 + 8 * len(target)) ** 0.5)) // 2
        drawn = np.full((bins, bins), np.nan)
        drawn[np.triu_indices(bins, 2)] = target[:, 0]
        drawn = np.where(np.isnan(drawn), drawn.T, drawn)
    else:
        finest, tracks = FINEST
        drawn = np.stack([part.max(0) for part in np.array_split(target[:, :tracks], min(finest, len(target)))], 1)
    low, high = (np.nanpercentile(drawn, share) if not np.isnan(drawn).all() else 0.0 for share in (1, 99))
    return (255 * (np.nan_to_num(drawn, nan=low) - low) / max(high - low, 1e-9)).clip(0, 255).astype(np.uint8)


def _length(tokens: Any) -> int:
    return sum(len(part) for part in tokens) if isinstance(tokens, list) else len(tokens)


def _labels(module: Any, item: dict) -> list[str]:
    """The names of an item's classes; of labels of tokens each one that occurs; of questions their number."""
    names = getattr(module, "class_names", None) or []
    if "target" in item and not _numbers(module, item):
        target = np.asarray(item["target"])
        held = np.flatnonzero(target) if target.ndim else [int(target)]
        return [names[n] for n in held]
    if "labels" in item:
        labels = np.asarray(item["labels"])
        return [names[n] if n < len(names) else str(n) for n in np.unique(labels[labels != IGNORED]).tolist()]
    return []


def _text(module: Any, tokens: Any) -> str:
    if isinstance(tokens, list):
        return " | ".join(_text(module, part) for part in tokens)
    tokens = np.asarray(tokens)
    if tokens.ndim > 1:
        return f"{tokens.shape[0]} patches of {tokens.shape[1]} numbers, from {tokens.min()} to {tokens.max()}"
    if getattr(module, "grid", None) is not None:
        return f"{len(tokens)} pixels, from {tokens.min()} to {tokens.max()}"
    return _plain(module.vocabulary.decode(tokens[: 4 * WIDE].tolist()))


def _plain(text: str) -> str:
    """On one line, and cut."""
    text = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    return text if len(text) <= WIDE else text[:WIDE] + " ..."


def _image(module: Any, tokens: np.ndarray) -> np.ndarray:
    """The image that tokens were cut from."""
    (rows, columns), side = module.grid, module.cutting.side
    channels = 1 if tokens.ndim == 1 else tokens.shape[1] // side**2
    image = tokens.reshape(rows, columns, side, side, channels).swapaxes(1, 2).reshape(rows * side, columns * side, channels)
    return image[:, :, 0] if channels == 1 else image


def shown(looks: list[Look]) -> str:
    """The looks as text."""
    lines = []
    for look in looks:
        lines.append(f"{look.split}: {look.size:,} sequences of {_spread(look.lengths)}")
        if look.target_lengths is not None:
            lines.append(f"  targets of {_spread(look.target_lengths)}")
        common = look.labels.most_common(12)
        if common:
            counted = "" if len(look.lengths) == look.size else f" among {len(look.lengths):,} of them"
            rest = f", and {len(look.labels) - len(common)} more" if len(look.labels) > len(common) else ""
            lines.append(f"  labels{counted}: " + ", ".join(f"{name} {count:,}" for name, count in common) + rest)
        for name, values in look.numbers.items():
            low, middle, high = np.percentile(np.concatenate(values), (0, 50, 100))
            lines.append(f"  {name}: from {low:.4g} to {high:.4g}, half of them up to {middle:.4g}")
        lines += [f"  {f'[{label}] ' if label else ''}{text}" for label, text in look.examples]
    return "\n".join(lines)


def _spread(lengths: np.ndarray) -> str:
    low, middle, high = np.percentile(lengths, (0, 50, 100)).astype(int)
    return f"{low:,} tokens each" if low == high else f"{low:,} to {high:,} tokens, half of them up to {middle:,}"


def drawn(looks: list[Look], target: Path) -> None:
    """The looks as a PNG: lengths of each split, labels or numbers where there are any, and of images some."""
    from matplotlib.figure import Figure  # slow to import, and few look

    rows: list[tuple[Callable[[Any, Look], None], bool]] = [
        (_draw_lengths, True),
        (_draw_target_lengths, any(look.target_lengths is not None for look in looks)),
        (_draw_labels, any(look.labels for look in looks)),
        (_draw_numbers, any(look.numbers for look in looks)),
        (_draw_images, any(look.images for look in looks)),
    ]
    wanted = [draw for draw, there in rows if there]
    figure = Figure(figsize=(4.5 * len(looks), 2.6 * len(wanted)), layout="constrained")
    axes = figure.subplots(len(wanted), len(looks), squeeze=False)
    for row, draw in zip(axes, wanted, strict=True):
        for place, look in zip(row, looks, strict=True):
            draw(place, look)
    for place, look in zip(axes[0], looks, strict=True):
        place.set_title(f"{look.split}: {look.size:,} sequences")
    figure.savefig(target, format="png", dpi=110)


def _draw_lengths(axes: Any, look: Look) -> None:
    _draw_counts(axes, look.lengths, "tokens", look.size)


def _draw_target_lengths(axes: Any, look: Look) -> None:
    assert look.target_lengths is not None
    _draw_counts(axes, look.target_lengths, "tokens of targets", look.size)


def _draw_counts(axes: Any, lengths: np.ndarray, what: str, size: int) -> None:
    """A histogram of whole numbers; one bar, of a name, where all are the same."""
    low, high = int(lengths.min()), int(lengths.max())
    if low == high:
        axes.bar([f"{low:,}"], [len(lengths)], width=0.2)
        axes.set_xlim(-1, 1)
    else:
        step = max(1, -(-(high - low) // 30))
        axes.hist(lengths, bins=np.arange(low, high + step + 1, step) - 0.5)
    axes.set(xlabel=what, ylabel="sequences" if len(lengths) == size else f"sequences of {len(lengths):,}")
    axes.yaxis.get_major_locator().set_params(integer=True)


def _draw_labels(axes: Any, look: Look) -> None:
    """The commonest labels, in the same order in each split."""
    common = sorted(look.labels.most_common(MOST_LABELS))
    axes.barh(range(len(common)), [count for _, count in common])
    axes.set_yticks(range(len(common)), [_short(name) for name, _ in common], fontsize=8 if len(common) < 12 else 6)
    axes.invert_yaxis()
    axes.set(xlabel="sequences" if len(look.lengths) == look.size else f"sequences of {len(look.lengths):,}")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "\u2026"


def _draw_numbers(axes: Any, look: Look) -> None:
    """How often which numbers occur; of several names the first few, over one another."""
    for name, values in list(look.numbers.items())[:6]:
        axes.hist(np.concatenate(values), bins=30, histtype="step", label=_short(name))
    several = max(map(len, look.numbers.values())) < sum(map(len, look.numbers.values()))
    axes.set(xlabel="value" if several else next(iter(look.numbers)), ylabel="how many")
    if several:
        axes.legend(fontsize=7)
    if sum(len(part) for values in look.numbers.values() for part in values) > 100 * len(look.lengths):
        axes.set_yscale("log")  # of tracks, most of whose numbers are near 0


def _draw_images(axes: Any, look: Look) -> None:
    axes.axis("off")
    if look.numbers:
        axes.set_title("numbers of the first sequence", fontsize=9)
    if look.images:
        several = len(look.images) > 1
        sheet = _sheet(look.images) if several else look.images[0]
        axes.imshow(sheet, cmap="gray", aspect="equal" if several else "auto", interpolation="nearest")


def _sheet(images: list[np.ndarray]) -> np.ndarray:
    """Images of one size side by side, four a row, with a grey line between them."""
    framed = [np.pad(image, [(0, 2), (0, 2), *[(0, 0)] * (image.ndim - 2)], constant_values=128) for image in images]
    while len(framed) % 4:
        framed.append(np.full_like(framed[0], 128))
    return np.concatenate([np.concatenate(framed[n : n + 4], 1) for n in range(0, len(framed), 4)], 0)

"""Batches: stacking items of unequal length into padded tensors.

Legend: B batch, T padded length, K classes.
"""

from __future__ import annotations

import numpy as np
import torch

# the label that losses and metrics leave out
IGNORED = -100
# the segment of padding, which no token is in
NO_SEGMENT = -1


class Collate:
    """Stacks items into {"tokens": [B, T] int64, "lengths": [B] int64, ...}.

    T is `max_length`, so that one pattern layout serves all batches, or with `multiple` the longest item's length
    rounded up to it. "bytes" [B, T] int64 (padded with 0), raw bytes of each token, come where a token is not one byte.
    Per-token labels are padded with -100. `lengths` "always", or "if_short": only in a batch where
    some item is shorter than T, since attention without lengths is cheaper. "segments" [B, T] int64 (padded with -1)
    come where an item holds several documents. `names` adds "ids" and "starts". With `multiple`, "widths" lists for each
    item the T that it would have alone: attention that hangs on T is evaluated at that length, so that a prediction does
    not depend on the batch.
    """

    def __init__(self, max_length: int, pad_id: int, *, lengths: str, multiple: int | None = None, names: bool = False):
        self.max_length, self.pad_id, self.lengths, self.multiple, self.names = (
            max_length,
            pad_id,
            lengths,
            multiple,
            names,
        )

    def __call__(self, items: list[dict]) -> dict:
        sizes = np.array([len(item["tokens"]) for item in items], dtype=np.int64)
        width = self.max_length
        if self.multiple is not None:
            widths = [min(width, -(-int(size) // self.multiple) * self.multiple) for size in sizes]
            width = max(widths)
        batch: dict = {"tokens": stacked([item["tokens"] for item in items], width, self.pad_id)}
        if self.multiple is not None:
            batch["widths"] = widths
        if self.lengths == "always" or (sizes < width).any():
            batch["lengths"] = torch.from_numpy(sizes)
        if any(item["segments"][-1] > 0 for item in items if "segments" in item):
            batch["segments"] = stacked([item["segments"] for item in items], width, NO_SEGMENT)
        if "bytes" in items[0]:
            batch["bytes"] = stacked([item["bytes"] for item in items], width, 0)
        if "labels" in items[0]:
            batch["labels"] = stacked([item["labels"] for item in items], width, IGNORED)
        if "target" in items[0]:
            batch["labels"] = torch.from_numpy(np.stack([item["target"] for item in items]))  # [B] or [B, K]
        if self.names:
            batch["ids"] = [item["id"] for item in items]
            batch["starts"] = torch.tensor([item["start"] for item in items], dtype=torch.int64)
        return batch


class PairCollate:
    """Stacks pairs of sequences to {"tokens": [2 B, T], "lengths": [2 B], "ids": B names, "labels": [B]}.

    The two of a pair follow one another. T and "widths", one a pair, are as of `Collate`.
    """

    def __init__(self, max_length: int, pad_id: int, multiple: int | None = None):
        self.max_length, self.pad_id, self.multiple = max_length, pad_id, multiple

    def __call__(self, items: list[dict]) -> dict:
        rows = [row for item in items for row in item["tokens"]]
        batch: dict = {"ids": [item["id"] for item in items]}
        width = self.max_length
        if self.multiple is not None:
            longest = [max(len(row) for row in item["tokens"]) for item in items]
            batch["widths"] = [min(width, -(-size // self.multiple) * self.multiple) for size in longest]
            width = max(batch["widths"])
        batch["tokens"] = stacked(rows, width, self.pad_id)
        batch["lengths"] = torch.tensor([len(row) for row in rows])
        if "target" in items[0]:
            batch["labels"] = torch.tensor([int(item["target"]) for item in items])
        return batch


def stacked(rows: list[np.ndarray], width: int, fill: int) -> torch.Tensor:
    """[rows, width] int64, each row filled up to `width`."""
    out = np.full((len(rows), width), fill, dtype=np.int64)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(out)

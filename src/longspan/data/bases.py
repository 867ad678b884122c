"""Finds data that are read as proteins and hold bases alone: each base is the letter of an amino acid too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from longspan.data.pair_sets import PairDataset
from longspan.data.splits import SPLITS
from longspan.data.vocabularies import PROTEINS

MOST = 256  # sequences that are looked at, evenly spaced
BASES = PROTEINS.encode_array(b"ACGTUN")


def bases_as_proteins(module: Any) -> list[str]:
    """Keys of a data module, after its `setup`, that are `proteins` where the sequences looked at hold bases alone."""
    return [key for key in ("vocabulary", "target_vocabulary") if _is_proteins(module, key) and _only_bases(module, key)]


def _is_proteins(module: Any, key: str) -> bool:
    found = getattr(module, key, None)
    return getattr(found, "name", None) == PROTEINS.name and (key == "vocabulary" or found is not module.vocabulary)


def _only_bases(module: Any, key: str) -> bool:
    seen = False
    for tokens in _looked_at(module, key):
        letters = tokens[tokens < len(PROTEINS.symbols)]  # without specials
        if not np.isin(letters, BASES).all():
            return False
        seen = seen or letters.size > 0
    return seen


def _looked_at(module: Any, key: str) -> Iterator[np.ndarray]:
    """Tokens of the first split that is no stream: of the training split, or beside a stream the validation split."""
    data: Any = next((one for one in map(module.split, SPLITS) if not isinstance(one, IterableDataset)), ())
    if isinstance(data, PairDataset):
        data = [{"tokens": pair.target if key == "target_vocabulary" else pair.source} for pair in data.pairs]
    for number in np.linspace(0, len(data) - 1, min(len(data), MOST)).round().astype(int).tolist():
        tokens = data[number]["tokens"]
        yield from map(np.asarray, tokens if isinstance(tokens, list) else [tokens])

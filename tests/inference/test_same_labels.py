"""A checkpoint is evaluated on data of its own labels and symbols; what older ones do not say of strands is no difference."""

from __future__ import annotations

import pytest

from longspan.config.errors import CheckpointError
from longspan.inference.evaluate import _check_same_labels

FACTS = {"vocab_size": 19, "class_names": ["no gene", "gene on +", "gene on -"]}
STRANDS = {"strands": {"complement": [3, 2, 1, 0], "bos_id": 4}}


def test_older_checkpoints_say_nothing_of_strands():
    _check_same_labels(FACTS, FACTS)
    _check_same_labels(FACTS, {**FACTS, **STRANDS})
    _check_same_labels({**FACTS, **STRANDS}, {**FACTS, **STRANDS})


@pytest.mark.parametrize(
    ("trained", "here", "key"),
    [
        ({**FACTS, **STRANDS}, FACTS, "strands"),
        ({**FACTS, **STRANDS}, {**FACTS, "strands": {"complement": [0, 1, 2, 3], "bos_id": 4}}, "strands"),
        (FACTS, {**FACTS, **STRANDS, "vocab_size": 34}, "vocab_size"),
        ({**FACTS, "multi_label": False}, FACTS, "multi_label"),
    ],
)
def test_other_data_is_refused(trained, here, key):
    with pytest.raises(CheckpointError, match=f"trained with {key} .*give data that agrees"):
        _check_same_labels(trained, here)


PATCHES = {"grid": [4, 4], "patches": True}  # of which vocab_size is the numbers of each


@pytest.mark.parametrize(
    ("trained", "here", "said"),
    [
        (192, 64, r"in colour \(3 channels\), this data is grey \(1 channel\): convert its images to colour .*data\.grey=true"),
        (64, 192, r"grey images \(1 channel\), this data is in colour \(3 channels\): give data\.grey=true"),
        (192, 48, r"patches of 192 numbers, this data has patches of 48: .*data\.patch"),
    ],
)
def test_images_of_other_channels_are_refused_in_these_words(trained, here, said):
    with pytest.raises(CheckpointError, match=said):
        _check_same_labels({**PATCHES, "vocab_size": trained}, {**PATCHES, "vocab_size": here})

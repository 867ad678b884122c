"""Patterns read from text: the same value as written in Python, and what a wrong text is told."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.patterns import BigBird, Fixed, Full, Global, Local, Local2D, PatternError, PerHead, Strided, parse_pattern

RIGHT = {
    "Local(256) | Strided(128)": Local(256) | Strided(128),
    " Local(4096) | Global(first=4)\n": Local(4096) | Global(first=4),
    "Global(positions=(0, 7)) & Local(9)": Global(positions=(0, 7)) & Local(9),
    "PerHead([Full(), BigBird(64, 3, 3, 2)])": PerHead([Full(), BigBird(64, 3, 3, 2)]),
    "Local2D(32, 32, 7, edges='shift')": Local2D(32, 32, 7, edges="shift"),
    "Fixed(stride=128, summary=32)": Fixed(128, 32),
}


@pytest.mark.parametrize("text", RIGHT)
def test_an_expression_is_the_pattern_it_writes(text):
    assert parse_pattern(text) == RIGHT[text]


@pytest.mark.parametrize(
    "text, told",
    [
        ("Local(256", "is not written right"),
        ("", "is not written right"),
        ("Locl(256)", "Did you mean Local"),
        ("Local(256) | 3", "joins 3"),
        ("Local", "without its settings"),
        ("3", "is no pattern"),
        ("[Local(3)]", "is no pattern"),
        ("Local(windw=256)", "unexpected keyword argument 'windw'"),
        ("Local()", "missing 1 required"),
        ("Local(0)", "window = 0"),
        ("Local(__import__('os').getpid())", "which is no literal"),
        ("Local(*[3])", "unpacks arguments"),
        ("Predicate(lambda *a: True)", "names Predicate"),
        ("(" * 3000 + "Full()" + ")" * 3000, "pattern"),
        ("Full()" * 3000, "characters"),
    ],
)
def test_a_wrong_expression_is_told_what_is_wrong(text, told):
    with pytest.raises(PatternError) as error:
        parse_pattern(text)
    assert told in str(error.value) and len(str(error.value)) < 600


@given(st.text(max_size=60))
def test_any_text_is_a_pattern_or_a_named_error(text):
    with contextlib.suppress(PatternError):
        parse_pattern(text)

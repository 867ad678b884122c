"""Made-up pairs to translate: dates to ISO 8601, and numbers to English words."""

from __future__ import annotations

import datetime

import numpy as np

from longspan.data.pair_sources import Pair
from longspan.data.readers import Row

FIRST_DAY = datetime.date(1900, 1, 1).toordinal()
DAYS = datetime.date(2099, 12, 31).toordinal() - FIRST_DAY + 1
NUMBERS = 10**6
UNITS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
DATE_FORMS = ("%d %B %Y", "%B %d, %Y", "%A, %d %b %Y", "%d/%m/%Y", "%b %d %Y", "%d.%m.%y")
GENERATED = ("dates", "numbers")


def made_pairs(kind: str, count: int, seed: int) -> list[Pair]:
    """`count` pairs of different dates (or numbers), so that none is in two splits; fewer where there are no more.

    dates: a day from 1900 to 2099 as people write it, and as 1999-03-05; two-digit years are those of 1970 to 2069.
    numbers: 0 to 999,999 in digits, and in words.
    """
    rng = np.random.default_rng([seed, GENERATED.index(kind)])
    every = DAYS if kind == "dates" else NUMBERS
    drawn = rng.permutation(every)[:count].tolist()
    pairs = []
    for number, value in enumerate(drawn):
        source, target = _date(value, rng) if kind == "dates" else (f"{value:,}", in_words(value))
        pairs.append(Pair(source, target, str(number), str(value), Row(f"made: {kind}", number + 1, {})))
    return pairs


def _date(day: int, rng: np.random.Generator) -> tuple[str, str]:
    date = datetime.date.fromordinal(FIRST_DAY + day)
    form = DATE_FORMS[int(rng.integers(len(DATE_FORMS)))]
    if "%y" in form and not 1970 <= date.year < 2070:
        form = form.replace("%y", "%Y")
    return date.strftime(form), date.isoformat()


def in_words(number: int) -> str:
    """A number below a million in English: 42,017 is "forty-two thousand seventeen"."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        return TENS[number // 10] + (f"-{UNITS[number % 10]}" if number % 10 else "")
    if number < 1000:
        rest = number % 100
        return f"{UNITS[number // 100]} hundred" + (f" {in_words(rest)}" if rest else "")
    rest = number % 1000
    return f"{in_words(number // 1000)} thousand" + (f" {in_words(rest)}" if rest else "")

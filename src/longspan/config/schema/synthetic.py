"""The values that the keys of `conf/data/` take for made-up sequences with questions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from longspan.config.schema.data import D, Data
from longspan.config.schema.kinds import Count, CountOrZero, Fix, Fraction, settings_of, whole

TokensOrShare = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)],
    Fix("tokens, a whole number, or a share of data.max_length between 0 and 1"),
]


class Sequences(Data):
    """The keys of made-up tasks."""

    epoch_windows: Count
    max_validation_windows: Count
    max_test_windows: Count


@settings_of(f"{D}DistractedNeedleDataModule")
class DistractedNeedleData(Sequences):
    needles: Count
    values_a_key: Count
    keys: Count
    values: whole(2, meaning="a number of symbols")  # type: ignore[valid-type]
    fillers: Count

    def problem(self) -> tuple[str, str] | None:
        return ("keys", f"give at least data.needles={self.needles}") if self.keys < self.needles else None


@settings_of(f"{D}VariableTrackingDataModule")
class VariableTrackingData(Sequences):
    chains: Count
    hops: Count
    variables: Count
    values: whole(2, meaning="a number of symbols")  # type: ignore[valid-type]
    fillers: Count


@settings_of(f"{D}CommonWordsDataModule")
class CommonWordsData(Sequences):
    common: Count
    often: whole(2, meaning="times")  # type: ignore[valid-type]
    seldom: Count
    words: whole(2, meaning="a number of symbols")  # type: ignore[valid-type]


@settings_of(f"{D}InContextRecallDataModule")
class InContextRecallData(Sequences):
    keys: whole(2, meaning="a number of symbols")  # type: ignore[valid-type]
    values: whole(2, meaning="a number of symbols")  # type: ignore[valid-type]
    key_tokens: whole(1, 8, "tokens")  # type: ignore[valid-type]
    value_tokens: whole(1, 8, "tokens")  # type: ignore[valid-type]
    noise: Fraction
    noise_symbols: Count


@settings_of(f"{D}MemorisationDataModule", f"{D}CompressionDataModule")
class MadData(Sequences):
    values: whole(2, meaning="a number of symbols")  # type: ignore[valid-type]
    keys: Count = 1


class Diagnostic(Sequences):
    """The keys of made-up tasks that set a distance."""

    distance: TokensOrShare
    max_distance: TokensOrShare | None
    fillers: Count
    questions: Count | None
    spread: Literal["uniform", "log"]


@settings_of(f"{D}AssociativeRecallDataModule")
class AssociativeRecallData(Diagnostic):
    pairs: Count
    keys: Count
    values: whole(2, meaning="a number of symbols")  # type: ignore[valid-type]


@settings_of(f"{D}InductionDataModule")
class InductionData(Diagnostic):
    run: Count
    symbols: Count


@settings_of(f"{D}NeedleDataModule")
class NeedleData(Diagnostic):
    needles: Count
    distances: Annotated[list[TokensOrShare], Field(min_length=1), Fix("a list of tokens or of shares, or null")] | None
    keys: Count
    values: whole(2, meaning="a number of symbols")  # type: ignore[valid-type]

    def problem(self) -> tuple[str, str] | None:
        if self.keys < self.needles:
            return "keys", f"give at least data.needles={self.needles}: the keys of a sequence differ"
        if self.distances is not None and self.max_distance is not None:
            return "max_distance", "data.distances is given too; give null for one of them"
        return None


@settings_of(f"{D}SelectiveCopyDataModule")
class SelectiveCopyData(Diagnostic):
    copies: CountOrZero
    values: whole(2, meaning="a number of symbols")  # type: ignore[valid-type]

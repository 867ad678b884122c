"""Records: what goes in comes out, what is wrong is refused by name, and a crash leaves the old file."""

import json
import math
import os
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config.errors import RecordError
from longspan.records import SCHEMA_VERSION, Accuracy, Measure, Record
from longspan.records import atomic as atomic_module

STARTED = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
DESIGN_FIELDS = {
    "status",
    "config",
    "command",
    "seed",
    "commit",
    "versions",
    "hardware",
    "accuracy",
    "cost",
    "started",
    "seconds",
    "error",
}

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
figures = st.one_of(st.none(), st.integers(-(10**24), 10**24), st.floats(allow_nan=False, allow_infinity=False))
plain_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=8,
)
accuracies = st.builds(
    Accuracy, value=figures, higher_is_better=st.booleans(), baseline=figures, split=st.sampled_from(["val", "test"])
)


@st.composite
def records(draw):
    status = draw(st.sampled_from(["complete", "failed", "interrupted", "out_of_memory"]))
    return Record(
        status=status,
        error=None if status == "complete" else draw(st.text(min_size=1)),
        config=draw(st.dictionaries(names, plain_values, max_size=4)),
        command=draw(st.text()),
        seed=draw(st.one_of(st.none(), st.integers(0, 2**63))),
        commit=draw(st.one_of(st.none(), st.text("0123456789abcdef", min_size=40, max_size=40))),
        versions=draw(st.dictionaries(names, st.one_of(st.none(), st.text()), max_size=3)),
        hardware=draw(st.dictionaries(names, plain_values, max_size=3)),
        accuracy=draw(st.dictionaries(names, accuracies, max_size=3)),
        cost=draw(st.dictionaries(names, st.builds(Measure, value=figures, unit=st.text()), max_size=3)),
        started=draw(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))),
        seconds=draw(st.floats(0, 1e9)),
        curves=draw(st.dictionaries(names, st.lists(st.tuples(st.integers(0, 10**9), figures), max_size=3), max_size=2)),
        extra=draw(st.dictionaries(names, plain_values, max_size=2)),
    )


@settings(max_examples=60, deadline=None)
@given(record=records())
def test_what_is_saved_is_loaded(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("records") / "record.json"
    record.save(path)
    assert Record.load(path) == record
    # and it is strict JSON with all that the design names
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the file"))
    assert set(content) >= DESIGN_FIELDS


def test_the_design_s_fields_alone_are_enough(tmp_path):
    content = {
        "status": "complete",
        "config": {"attention": {"_target_": "longspan.attention.bigbird"}},
        "command": "python train.py",
        "seed": 0,
        "commit": None,
        "versions": {},
        "hardware": {},
        "accuracy": {"bits_per_byte": {"value": 2.5, "higher_is_better": False, "baseline": 4.34, "split": "test"}},
        "cost": {"total_flops": {"value": 10**19, "unit": "FLOP"}},
        "started": "2026-01-31T12:00:00Z",
        "seconds": 1.5,
        "error": None,
    }
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    record = Record.load(tmp_path)  # the run's folder will do
    assert record.cost["total_flops"].value == 10**19
    assert record.accuracy["bits_per_byte"].beats_baseline is True
    assert record.variant_name == "bigbird"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figures_that_are_not_finite_become_null(tmp_path, value):
    record = Record(
        status="complete",
        started=STARTED,
        accuracy={"loss": Accuracy(value=value, higher_is_better=False)},
        cost={"energy": Measure(value=value, unit="J")},
        curves={"val/loss": [(1, value)]},
        config={"clip": value},
    )
    loaded = Record.load(record.save(tmp_path / "record.json"))
    assert loaded.accuracy["loss"].value is None
    assert loaded.accuracy["loss"].beats_baseline is None
    assert loaded.cost["energy"].value is None
    assert loaded.curves["val/loss"] == [(1, None)]
    assert loaded.config["clip"] in (".nan", ".inf", "-.inf")  # a setting keeps what it said


@pytest.mark.parametrize(
    ("value", "baseline", "higher", "verdict"),
    [
        (0.8, 0.7, True, True),
        (0.7, 0.7, True, False),
        (2.0, 4.0, False, True),
        (4.0, 4.0, False, False),
        (1.0, None, True, None),
    ],
)
def test_beating_the_baseline_is_strict(value, baseline, higher, verdict):
    assert Accuracy(value=value, higher_is_better=higher, baseline=baseline).beats_baseline is verdict


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"status": "compl', "not JSON, line 1"),
        ("[1, 2]", "a list"),
        ('{"status": "complete", "seconds": NaN}', "NaN is not JSON"),
        ('{"schema_version": 99}', "schema_version 99 is not known"),
        ('{"status": "done", "started": "2026-01-31T12:00:00Z"}', "status"),
        ('{"status": "complete"}', "started"),
        ('{"status": "complete", "started": "2026-01-31T12:00:00"}', "started"),
        ('{"status": "complete", "started": "2026-01-31T12:00:00Z", "acuracy": {}}', "acuracy"),
        ('{"status": "failed", "started": "2026-01-31T12:00:00Z"}', "must say its error"),
        ('{"status": "complete", "started": "2026-01-31T12:00:00Z", "error": "x"}', "has no error"),
        ('{"status": "complete", "started": "2026-01-31T12:00:00Z", "seconds": -1}', "seconds"),
    ],
)
def test_a_malformed_record_names_file_and_reason(tmp_path, text, words):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(RecordError) as error:
        Record.load(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"record\.json: no such file"):
        Record.load(tmp_path)
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="not UTF-8"):
        Record.load(tmp_path)


def test_what_json_cannot_state_is_refused_by_place():
    with pytest.raises(ValueError, match=r"it\.model\.layers"):
        Record(status="complete", started=STARTED, config={"model": {"layers": object()}})


def test_a_record_changed_in_place_is_checked_when_it_is_written(tmp_path):
    record = Record(status="complete", started=STARTED)
    record.config["bad"] = object()
    with pytest.raises(RecordError, match="was not written"):
        record.save(tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_record(tmp_path, monkeypatch, broken):
    path = Record(status="complete", started=STARTED, command="old").save(tmp_path / "record.json")

    def crash(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_module.os, broken, crash)
    with pytest.raises(OSError, match="No space left"):
        Record(status="complete", started=STARTED, command="new").save(path)
    monkeypatch.undo()
    assert Record.load(path).command == "old"
    assert os.listdir(tmp_path) == ["record.json"], "the temporary file must not stay"


def test_times_of_other_zones_are_kept(tmp_path):
    zone = timezone(timedelta(hours=5, minutes=30))
    record = Record(status="complete", started=STARTED.astimezone(zone))
    assert Record.load(record.save(tmp_path / "record.json")).started == STARTED


def test_the_version_is_written(tmp_path):
    path = Record(status="complete", started=STARTED).save(tmp_path / "record.json")
    assert json.loads(path.read_text())["schema_version"] == SCHEMA_VERSION

"""The run record: one JSON file that a run leaves, and everything a report is made from.

The fields are those of the design (`status`, `config`, `command`, `seed`, `commit`, `versions`, `hardware`,
`accuracy`, `cost`, `started`, `seconds`, `error`), and a few more that may be left out:

    schema_version  1; a file without it is read as version 1
    variant         the attention variant's name, as chosen on the command line
    primary_metric  the metric that the task is judged by, one of `accuracy`
    name            a label for people; the report derives one from the config where there is none
    group           the sweep a run belongs to
    commit_dirty    tracked files differed from the commit when the run started
    data            what the data module says of itself: sizes, splits, provenance
    curves          {metric: [[step, value], ...]}, thinned to a few hundred points
    extra           anything else that is plain, such as accuracy by length
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)

from longspan.config.errors import RecordError
from longspan.records.atomic import write_text
from longspan.records.jsonable import figure, jsonable
from longspan.records.ranking import better

SCHEMA_VERSION = 1
LARGEST_FILE = 64 * 2**20
Status = Literal["complete", "failed", "interrupted", "out_of_memory"]

Figure = Annotated[StrictInt | StrictFloat | None, BeforeValidator(figure)]
Plain = Annotated[dict[str, Any], BeforeValidator(lambda value: jsonable(value, "it"))]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Accuracy(_Strict):
    """One metric at the end of a run. `value` is None where it came out as NaN or infinity.

    Attributes:
        baseline: what a trivial predictor gets on the same split (majority class, unigram); None where unknown.
        split: "test", or "val" where the run was never tested.
    """

    value: Figure
    higher_is_better: bool
    baseline: Figure = None
    split: str = "val"

    @property
    def beats_baseline(self) -> bool | None:
        """Better than the trivial baseline by more than rounding; None where either figure is missing."""
        if self.value is None or self.baseline is None:
            return None
        return better(self.value, self.baseline, self.higher_is_better)


class Measure(_Strict):
    """One cost figure. Whole numbers stay whole (FLOPs exceed what a float holds exactly)."""

    value: Figure
    unit: str = ""


class Record(_Strict):
    """See the module's page for the fields. Build it with keywords, write it with :meth:`save`."""

    schema_version: int = SCHEMA_VERSION
    status: Status
    config: Plain = Field(default_factory=dict)
    command: str = ""
    seed: int | None = None
    commit: str | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    hardware: Plain = Field(default_factory=dict)
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    cost: dict[str, Measure] = Field(default_factory=dict)
    started: AwareDatetime
    seconds: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] = 0.0
    error: str | None = None

    variant: str | None = None
    primary_metric: str | None = None
    name: str | None = None
    group: str | None = None
    commit_dirty: bool | None = None
    data: Plain = Field(default_factory=dict)
    curves: dict[str, list[tuple[Annotated[int, Field(ge=0, le=2**53)], Figure]]] = Field(default_factory=dict)
    extra: Plain = Field(default_factory=dict)

    @model_validator(mode="after")
    def _status_and_error_agree(self) -> Record:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {self.schema_version}")
        if self.status == "complete" and self.error:
            raise ValueError(f"a complete run has no error, got {self.error[:80]!r}")
        if self.status in ("failed", "out_of_memory") and not self.error:
            raise ValueError(f"a run with status {self.status!r} must say its error")
        return self

    @property
    def variant_name(self) -> str:
        """The attention variant: as recorded, else the last part of the config's ``attention._target_``."""
        attention = self.config.get("attention")
        target = attention.get("_target_") if isinstance(attention, dict) else attention
        return self.variant or (str(target).rsplit(".", 1)[-1] if target else "unnamed")

    def save(self, path: str | Path) -> Path:
        """Validate once more, then write so that a reader sees the old file or the new one, never a half.

        Raises:
            RecordError: the record is not valid, as after a field's dict was changed in place.
            OSError: the disk refused; the file that was there before is untouched.
        """
        path = Path(path)
        try:
            checked = Record.model_validate(self.model_dump(mode="python", warnings=False))
            text = json.dumps(checked.model_dump(mode="json"), indent=2, allow_nan=False)
        except (ValidationError, ValueError, TypeError) as error:
            raise RecordError(f"{path} was not written: {_reason(error)}") from error
        write_text(path, text + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record, or the ``record.json`` of a run's folder.

        Raises:
            RecordError: the file is missing, is not JSON, is of another schema version or does not fit the schema.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "record.json"
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise ValueError(f"it is larger than {LARGEST_FILE // 2**20} MiB, and no run leaves such a record")
            content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
            if not isinstance(content, dict):
                raise ValueError(f"a record is a JSON object, this is a {type(content).__name__}")
            version = content.get("schema_version", SCHEMA_VERSION)
            if version != SCHEMA_VERSION:
                raise ValueError(
                    f"schema_version {version!r} is not known; this Longspan reads version {SCHEMA_VERSION}: "
                    "use the release that wrote it"
                )
            return cls.model_validate_json(json.dumps(content))
        except (OSError, ValueError) as error:
            raise RecordError(f"{path}: {_reason(error)}") from error
        except RecursionError as error:
            raise RecordError(f"{path}: it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; a figure that is not finite is null")


def _reason(error: Exception) -> str:
    """One line for people from what went wrong."""
    if isinstance(error, ValidationError):
        parts = [
            f"{'.'.join(map(str, item['loc'])) or 'record'}: {item['msg']}"
            + (f" (got {str(item['input'])[:60]!r})" if item["type"] != "missing" and item["loc"] else "")
            for item in error.errors()
        ]
        return "; ".join(parts)
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON, line {error.lineno} column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)

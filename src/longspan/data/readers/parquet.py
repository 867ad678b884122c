"""Parquet tables, read by pyarrow (which comes with Hugging Face datasets)."""

from __future__ import annotations

from pathlib import Path

from longspan.data.errors import DataFileError
from longspan.data.readers.rows import Row


def read_parquet(path: str | Path) -> list[Row]:
    """The rows of a table; `line` is the row's number, from 1.

    Raises:
        DataFileError: the file is no Parquet table, or has no row.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(str(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataFileError(path, None, f"not a Parquet table ({error})") from error
    if table.num_rows == 0:
        raise DataFileError(path, None, "holds no row")
    return [Row(str(path), number, values) for number, values in enumerate(table.to_pylist(), start=1)]

"""A folder is written to by one run at a time; a lock whose holder is gone does not stand in the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longspan.config.errors import InUseError
from longspan.records.lock import described, exclusive, held_folder, holder_of

HOLDER = """
import sys, time
from pathlib import Path
from longspan.records.lock import held_folder
with held_folder(Path(sys.argv[1])):
    if len(sys.argv) > 2:
        import os
        if os.fork() == 0:  # as a worker, which inherits the lock
            time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path, *words: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *words], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_holder_is_named(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(InUseError) as caught, held_folder(tmp_path):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    said = str(caught.value)
    assert f"process {process.pid} on {socket.gethostname()}, started 20" in said and str(tmp_path) in said


@pytest.mark.parametrize("words", [(), ("with a worker",)], ids=["alone", "with a worker"])
def test_a_killed_holder_is_followed_at_once(tmp_path, words):
    process = holder(tmp_path, *words)
    process.kill()
    if not words:
        process.wait()
    begun = time.monotonic()
    while True:  # the kernel may take a moment to end it
        try:
            with held_folder(tmp_path):
                assert holder_of(tmp_path / "run.lock")["process"] == os.getpid()
            break
        except InUseError:
            assert time.monotonic() - begun < 5
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "run.lock").exists()


def test_a_lock_without_a_holder_counts_for_nothing(tmp_path):
    (tmp_path / "run.lock").write_text(json.dumps({"process": 1, "host": "elsewhere"}))
    with held_folder(tmp_path):
        pass
    (tmp_path / "run.lock").write_text("not json")
    with held_folder(tmp_path):
        pass


def test_a_lock_is_not_taken_over_where_that_is_not_asked(tmp_path):
    with exclusive(tmp_path / "job.lock") as handle:
        os.pwrite(handle, json.dumps({"process": 2**22 + 1, "host": socket.gethostname()}).encode(), 0)
        with pytest.raises(InUseError), exclusive(tmp_path / "job.lock"):
            pass


def test_words_for_a_holder_that_left_none():
    assert described({}) == "another process"

"""scripts/prepare_data.py says what a run would read, and names what is wrong with it."""

import json
from pathlib import Path

from warm_process import run

ROOT = Path(__file__).parents[2]


def prepare(*words):
    return run(ROOT / "scripts" / "prepare_data.py", *words, cwd=ROOT)


def test_it_tells_sizes_and_baselines(tmp_path):
    done = prepare("data=addresses", "data.max_length=4096", "data.batch_size=8", f"output={tmp_path / 'said.json'}")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["data"]["train"]["documents"] == 111 and said["batch"]["tokens"] == [8, 4096]
    assert 4.2 < said["baselines"]["test"]["bits_per_byte"] < 4.5


def test_it_names_a_malformed_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": \n')
    done = prepare("data=text", f"data.path={tmp_path / 'x.jsonl'}")
    assert done.returncode == 2 and "x.jsonl, line 2: not JSON" in done.stderr and "Traceback" not in done.stderr

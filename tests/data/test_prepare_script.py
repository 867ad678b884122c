"""scripts/prepare_data.py says what a run would read, and names what is wrong with it."""

import json
from pathlib import Path

import published_files
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


def test_it_tells_what_is_left_out_and_batches_of_their_own_width(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    pairs = tmp_path / "enhancer_target_gene" / "pairs.tsv"
    path = published_files.dnalongbench(tmp_path)
    pairs.write_text(pairs.read_text() + "\tchr1\t200\t230\tchr1\t3000\t3100\tg\t+\tr\tpositive\ttrain\n")
    done = prepare("data=dnalongbench", f"data.path={path}", "data.batch_size=3", f"output={tmp_path / 'said.json'}")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["batch"] == {"tokens": [3, 1024], "widths": [3], "lengths": [3], "labels": [3]}
    assert said["data"]["left_out"] == {"pairs more than 1000 bases apart": 1} and said["data"]["train"]["sequences"] == 8


def test_it_names_a_malformed_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": \n')
    done = prepare("data=text", f"data.path={tmp_path / 'x.jsonl'}")
    assert done.returncode == 2 and "x.jsonl, line 2: not JSON" in done.stderr and "Traceback" not in done.stderr

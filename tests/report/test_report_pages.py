"""The report as files: complete, self-contained, honest about what failed."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from left_records import leave
from rich.console import Console
from warm_process import run

from longspan.config.errors import ConfigError
from longspan.records import Accuracy, Measure, Record
from longspan.report.build import write_report
from longspan.report.summary import print_summary

SCRIPT = Path(__file__).parents[2] / "scripts" / "report.py"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def runs(tmp_path):
    """Three variants, three seeds, with curves; one run out of memory, one interrupted, one record cut short."""
    folder = tmp_path / "runs"
    for seed in range(3):
        for variant, value, cost in [("full", 0.80, 9e15), ("local", 0.70, 2e15), ("bigbird", 0.81, 3e15)]:
            path = leave(folder, f"{variant}{seed}", variant, seed, value + seed / 100, cost=int(cost))
            record = Record.load(path)
            record.curves = {"val/accuracy": [(step, value * step / 10) for step in range(1, 11)]}
            record.cost["step_time"] = Measure(value=100.0 + seed, unit="ms a step")
            record.save(path)
    leave(folder, "oom", "full", 7, status="out_of_memory")
    leave(folder, "stopped", "<b>&nasty", 8, status="interrupted")
    (folder / "cut").mkdir()
    (folder / "cut" / "record.json").write_text('{"status": "compl')
    return folder


class Loads(HTMLParser):
    """Everything that a page would have the browser fetch."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.tags = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "poster", "action") and value:
                self.found.append(value)


def test_all_files_are_there(runs, tmp_path):
    page = write_report([runs], tmp_path / "out")
    assert page.name == "report.html"
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"report.html", "report.md", "table.csv", "table.tex", "accuracy-cost.png", "learning-curves.png"}
    assert all((page.parent / name).read_bytes().startswith(PNG) for name in names if name.endswith(".png"))


def test_the_page_loads_nothing(runs, tmp_path):
    text = write_report([runs], tmp_path / "out").read_text()
    parser = Loads()
    parser.feed(text)
    assert parser.found, "the pictures"
    assert all(value.startswith("data:image/png;base64,") for value in parser.found)
    assert "link" not in parser.tags and "iframe" not in parser.tags
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|url\(", re.sub(r"base64,[\w+/=]+", "", text))
    assert "default-src 'none'" in text


def test_the_page_s_data_are_the_records(runs, tmp_path):
    text = write_report([runs], tmp_path / "out").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    [section] = data["sections"]
    assert [group["label"] for group in section["groups"]] == ["full", "bigbird", "local"]
    bigbird = section["groups"][1]
    assert bigbird["metrics"]["accuracy"]["mean"] == pytest.approx(0.82)
    assert bigbird["metrics"]["accuracy"]["n"] == 3
    assert bigbird["costs"]["total_flops"] == 3e15
    assert [axis["key"] for axis in section["axes"]] == ["flops", "time"], "no axis that no run measured"
    assert section["curves"][0]["axes"][0]["means"]["local"][-1] == pytest.approx([10, 0.7])


def test_what_failed_is_said_and_escaped(runs, tmp_path):
    page = write_report([runs], tmp_path / "out")
    text, words = page.read_text(), page.with_suffix(".md").read_text()
    for shown in (text, words):
        assert "out of memory" in shown
        assert "interrupted" in shown
        assert "cut/record.json" in shown and "not JSON" in shown
    assert "<b>&nasty" not in text and "&lt;b&gt;&amp;nasty" in text
    assert "11 complete" not in words and "9 complete" in words


def test_commands_and_environment_are_there(runs, tmp_path):
    words = write_report([runs], tmp_path / "out").with_suffix(".md").read_text()
    assert "python train.py attention=bigbird seed=2" in words
    assert "no commit" in words


def test_commands_make_runs_anew_rather_than_go_on_with_them(runs, tmp_path):
    record = Record.load(runs / "full0" / "record.json")
    record.command = "python train.py seed=0 'name=a b' hydra.run.dir=multirun/x/full0 group=x ckpt_path=auto"
    record.save(runs / "full0" / "record.json")
    text = write_report([runs], tmp_path / "out").with_suffix(".md").read_text()
    assert "python train.py seed=0 'name=a b' group=x\n" in text and "ckpt_path" not in text


def test_the_markdown_table(runs, tmp_path):
    words = write_report([runs], tmp_path / "out").with_suffix(".md").read_text()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in words.partition("## Runs that did not finish")[0].splitlines()
        if line.startswith("|")
    }
    assert rows["full"][:4] == ["3", "0.810 ± 0.010", "0.4000", "reference"]
    assert rows["**bigbird**"][3] == "+0.0100 [+0.0100, +0.0100]", "bold: on the front; the seed drops out of the pairs"
    assert "![accuracy against training FLOPs](accuracy-cost.png)" in words
    assert "Bigbird takes 33 % of full's training FLOPs" in words


def test_what_loses_much_is_not_called_as_good_however_few_seeds_there_are(runs, tmp_path):
    for seed, accuracy in enumerate((0.3, 0.79, 0.5)):  # far below full's, with an interval that takes zero in
        record = Record.load(runs / f"bigbird{seed}" / "record.json")
        record.accuracy["accuracy"].value = accuracy
        record.save(runs / f"bigbird{seed}" / "record.json")
    words = write_report([runs], tmp_path / "out").with_suffix(".md").read_text()
    assert "Bigbird takes" not in words


def test_remarks_stand_under_the_title(runs, tmp_path):
    page = write_report([runs], tmp_path / "out", remarks=["Runs <shared> a GPU."])
    assert page.with_suffix(".md").read_text().index("a GPU.") < page.with_suffix(".md").read_text().index("## ")
    assert "<p>Runs &lt;shared&gt; a GPU.</p></header>" in page.read_text()


def test_the_front_follows_the_cost_axis(runs, tmp_path):
    words = write_report([runs], tmp_path / "out", cost="time").with_suffix(".md").read_text()
    assert "**local**" not in words, "all take the same time, so only the best is on the front"
    assert "**bigbird**" in words


def test_what_no_run_measured_is_said_and_the_page_still_shows_the_other_costs(runs, tmp_path):
    page = write_report([runs], tmp_path / "out", cost="energy")
    text = page.with_suffix(".md").read_text()
    assert "No run states energy (J): there is no Pareto front against it." in text and "Bold:" not in text
    assert 'data-chart="cost"' in page.read_text()
    record = Record.load(runs / "full0" / "record.json")
    record.cost["energy"] = Measure(value=5.0, unit="J")
    record.save(runs / "full0" / "record.json")
    text = write_report([runs], tmp_path / "out", cost="energy").with_suffix(".md").read_text()
    assert "Not judged against energy (J), which their runs do not state: bigbird, local." in text and "Bold:" in text


def test_latex_has_minus_signs_and_no_letter_that_its_fonts_lack(runs, tmp_path):
    leave(runs, "few", "learned <8|1>", 0, 0.7)
    text = (write_report([runs], tmp_path / "out").parent / "table.tex").read_text()
    assert r"learned \textless{}8\textbar{}1\textgreater{}" in text and "$-$0.1000 [$-$0.1000, $-$0.1000]" in text


def test_an_unknown_cost_lists_the_known(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"'money'.*flops, time, memory, energy"):
        write_report([runs], tmp_path / "out", cost="money")


def test_the_same_records_give_the_same_bytes(runs, tmp_path):
    first = write_report([runs], tmp_path / "a").parent
    second = write_report([runs], tmp_path / "b").parent
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_a_report_that_is_stopped_leaves_the_one_before(runs, tmp_path, monkeypatch):
    from longspan.report import figures

    page = write_report([runs], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "learning_curves", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report([runs], tmp_path / "out")
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == before


def test_only_failures_still_make_a_report(tmp_path):
    leave(tmp_path / "runs", "oom", status="out_of_memory")
    page = write_report([tmp_path / "runs"], tmp_path / "out")
    assert "out of memory" in page.read_text()


def test_the_script_says_where_it_wrote_and_what_is_wrong(runs, tmp_path):
    done = run(SCRIPT, runs, "-o", tmp_path / "out", "--cost", "time")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out" / "report.html") in done.stdout
    done = run(SCRIPT, tmp_path / "nowhere", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "nowhere does not exist" in done.stderr


def test_making_a_report_needs_no_torch():
    code = "import sys, longspan.report, longspan.report.build; print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.strip() == "[]"


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_the_closing_table_fits_80_columns(tmp_path):
    record = Record.load(leave(tmp_path, "a", "bigbird", value=0.8, cost=int(8e15)))
    record.accuracy["macro_f1"] = Accuracy(value=0.3, higher_is_better=True, baseline=0.5, split="test")
    record.accuracy["bits_per_byte"] = Accuracy(value=2.5, higher_is_better=False, baseline=4.34, split="val")
    for name, value, unit in [
        ("density", 0.21, "live / all pairs"),
        ("live_pairs", 8171520, "pairs a sequence"),
        ("visited_pairs", 8945664, "pairs"),
        ("parameters", 4813056, "parameters"),
        ("attention_share", 0.188, "of the FLOPs"),
        ("step_time", 412.5, "ms a step"),
        ("tokens_per_second", 19_853.0, "tokens/s"),
        ("peak_memory", 2236.57, "MiB resident in the process"),
        ("data_time", 1.0, "ms a step"),
        ("data_time_share", 0.123, "of the training time"),
        ("energy", 123456.0, "J"),
    ]:
        record.cost[name] = Measure(value=value, unit=unit)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(record, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text, "nothing is cut off"
    for words in (
        "0.8000",
        "0.4000",
        "yes",
        "no",
        "4.340",
        "density",
        "412 ms",
        "2,237 MiB",
        "8 PFLOP",
        "19.9 k tokens/s",
        "12.3 %",
        "of the training; raise data.num_workers",
        "complete in",
    ):
        assert words in text, words


@pytest.mark.parametrize(("share", "has_column"), [(0.3, True), (0.004, False)])
def test_waiting_for_data_has_a_column_where_a_variant_waits(tmp_path, share, has_column):
    for variant, waits in [("full", 0.002), ("local", share)]:
        path = leave(tmp_path / "runs", variant, variant)
        record = Record.load(path)
        record.cost["data_time_share"] = Measure(value=waits, unit="of the training time")
        record.save(path)
    out = write_report([tmp_path / "runs"], tmp_path / "out").parent
    text = (out / "report.md").read_text()
    assert ("waits for data" in text) == has_column
    assert ("| 30 % |" in text) == has_column
    assert f",{share}" in (out / "table.csv").read_text(), "the CSV has it always"
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "as many cells as headings"


def test_patterns_are_drawn_from_the_records(runs, tmp_path):
    rows = ["f000", "8f00", "08f0", "008f"]
    for path in (runs / "local0" / "record.json", runs / "bigbird1" / "record.json"):
        record = Record.load(path)
        record.extra = {"pattern": [{"layers": [0, 1], "length": 1024, "causal": True, "rows": rows}]}
        record.save(path)
    spoilt = Record.load(runs / "full0" / "record.json")
    spoilt.extra = {"pattern": [{"rows": "not hexadecimal"}]}  # left out rather than fatal
    spoilt.save(runs / "full0" / "record.json")
    page = write_report([runs], tmp_path / "out")
    text = page.read_text()
    assert text.count("<figure data-label=") == 2
    assert "1,024 tokens, causal" in text
    assert (page.parent / "patterns.png").read_bytes().startswith(PNG)
    assert "(patterns.png)" in page.with_suffix(".md").read_text()


def test_a_sketch_s_png_has_a_pixel_a_cell(tmp_path):
    import base64

    from matplotlib import image

    from longspan.report.patterns import Sketch, data_uri

    uri = data_uri(Sketch("local", "", [[1.0, None], [0.0, 0.5]]), "#102030")
    (tmp_path / "a.png").write_bytes(base64.b64decode(uri.partition(",")[2]))
    pixels = image.imread(tmp_path / "a.png")
    assert pixels.shape == (2, 2, 4)
    assert [round(255 * value) for value in pixels[0, 0]] == [0x10, 0x20, 0x30, 255]
    assert pixels[0, 1][3] == 0, "what a causal model never sees is clear"
    assert pixels[1, 0].sum() > pixels[1, 1].sum() > pixels[0, 0].sum(), "the more live pairs, the darker"


def test_what_a_learned_pattern_costs_while_it_trains_is_drawn(runs, tmp_path):
    write_report([runs], tmp_path / "none")
    assert not (tmp_path / "none" / "cost-while-training.png").exists()
    for seed in range(2):
        record = Record.load(leave(runs, f"learned{seed}", "learned", seed, 0.8))
        steps = range(10, 60, 10)
        record.curves = {
            "cost/density": [(step, 5 / step + seed / 10) for step in steps],
            "cost/density_asked": [(step, 4 / step) for step in steps],
            "cost/step_time": [(step, None if step == 10 else 600 / step) for step in steps],
        }
        record.save(runs / f"learned{seed}" / "record.json")
    page = write_report([runs], tmp_path / "out")
    assert (tmp_path / "out" / "cost-while-training.png").read_bytes().startswith(PNG)
    assert "![density and time a step, while training](cost-while-training.png)" in (tmp_path / "out" / "report.md").read_text()
    density, times = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])["sections"][0]["lines"]
    assert list(density["means"]) == list(times["means"]) == ["learned"] and density["fromZero"]
    assert density["means"]["learned"] == [[step, pytest.approx(5 / step + 0.05, rel=1e-5)] for step in steps]
    assert density["aims"]["learned"] == [[step, pytest.approx(4 / step, rel=1e-5)] for step in steps]
    assert len(density["seeds"]["learned"]) == 2 and [step for step, _ in times["means"]["learned"]] == [20, 30, 40, 50]


def test_the_table_and_the_scatter_go_to_wandb_too(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    page = write_report([runs], tmp_path / "out", wandb_project="longspan")
    tables = [json.loads(path.read_text()) for path in page.parent.rglob("media/table/**/*.table.json")]
    assert tables
    for table in tables:  # of the section, and of its scatter
        rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
        assert rows["bigbird"]["accuracy"] == pytest.approx(0.82) and rows["bigbird"]["total_flops"] == 3e15
        assert rows["bigbird"]["difference"] == pytest.approx(0.01) and rows["full"]["difference"] is None
    assert len(list(page.parent.rglob("media/images/**/*.png"))) == 2


def test_a_report_can_be_made_again_from_the_records_beside_it(runs, tmp_path):
    leave(runs / "deeper", "full0", "full", 11, 0.9)  # another run in a folder of the same name
    first = write_report([runs], tmp_path / "out", keep_records=True)
    kept = sorted(path.parent.name for path in (tmp_path / "out" / "records").rglob("record.json"))
    assert len(kept) == 12 and {"full0", "full0-2", "oom"} <= set(kept), "all but the one that cannot be read"
    page = first.read_text()
    assert "records/oom/record.json" in page
    again = write_report([tmp_path / "out" / "records"], tmp_path / "out", keep_records=True)
    assert sorted(path.parent.name for path in (tmp_path / "out" / "records").rglob("record.json")) == kept
    table = (tmp_path / "out" / "table.csv").read_text()
    write_report([runs], tmp_path / "other")
    assert (tmp_path / "other" / "table.csv").read_text() == table and again == first


def test_a_report_inside_the_sweep_s_folder_does_not_count_its_copies(runs, tmp_path):
    for _ in range(2):
        write_report([runs], runs / "report", keep_records=True)
    assert len(list((runs / "report" / "records").rglob("record.json"))) == len(list(runs.glob("*/record.json"))) - 1
    assert "repeats" not in (runs / "report" / "report.md").read_text()


def test_copied_records_do_not_tell_where_their_run_lay(tmp_path):
    leave(tmp_path / "mine", "full0", "full", 0, 0.9)
    place = tmp_path / "mine" / "full0" / "record.json"
    record = Record.load(place.parent)
    folder = str(place.parent)
    config = {**record.config, "output_dir": folder, "callbacks": [{"dirpath": f"{folder}/checkpoints"}], "data": "/data/x"}
    record.model_copy(update={"config": config}).save(place)
    write_report([tmp_path / "mine"], tmp_path / "out", keep_records=True)
    copied = (tmp_path / "out" / "records" / "full0" / "record.json").read_text()
    assert str(tmp_path) not in copied
    kept = Record.load(tmp_path / "out" / "records" / "full0").config
    assert (
        kept["output_dir"] == "full0" and kept["callbacks"][0]["dirpath"] == "full0/checkpoints" and kept["data"] == "/data/x"
    )

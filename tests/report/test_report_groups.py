"""Which runs are compared with which."""

import pytest
from left_records import leave

from longspan.config.errors import RecordError
from longspan.report.collect import collect
from longspan.report.groups import sections
from longspan.report.tables import csv_text, rows_of


def only_section(folder, **settings):
    found, repeats = sections(collect([folder]), **settings)
    assert len(found) == 1
    return found[0], repeats


def test_seeds_of_one_setting_are_a_group(tmp_path):
    for seed in range(3):
        leave(tmp_path, f"a{seed}", "full", seed, 0.5 + seed / 10)
        leave(tmp_path, f"b{seed}", "local", seed, 0.6 + seed / 10)
    section, repeats = only_section(tmp_path)
    assert [(group.label, len(group.runs)) for group in section.groups] == [("full", 3), ("local", 3)]
    assert not repeats
    row = rows_of(section)[1]
    assert row.mean == pytest.approx(0.7)
    assert row.difference.mean == pytest.approx(0.1)
    assert row.difference.pairs == 3


def test_a_bar_of_one_standard_deviation_ends_where_no_share_can_be_beyond(tmp_path):
    for seed, accuracy in enumerate((0.9, 1.0, 1.0)):
        leave(tmp_path, f"a{seed}", "full", seed, accuracy)
        leave(tmp_path, f"b{seed}", "local", seed, 0.5 + seed / 10)
    section, _ = only_section(tmp_path)
    full, local = section.groups
    mean, sd = 2.9 / 3, (0.02 / 3 / 2) ** 0.5
    assert full.bar("accuracy") == (pytest.approx(mean - sd), 1.0)
    assert local.bar("accuracy") == (pytest.approx(0.5), pytest.approx(0.7))
    assert local.bar("perplexity") is None


def test_settings_that_differ_are_named_and_compared_with_their_like(tmp_path):
    for rate in (0.1, 0.2):
        leave(tmp_path, f"full{rate}", "full", 0, 0.5 + rate, optimizer__lr=rate)
        leave(tmp_path, f"local{rate}", "local", 0, 0.5, optimizer__lr=rate, attention__window=64)
    section, _ = only_section(tmp_path)
    labels = [group.label for group in section.groups]
    assert labels == ["full (lr=0.1)", "full (lr=0.2)", "local (lr=0.1)", "local (lr=0.2)"]
    differences = {row.label: row.difference for row in rows_of(section)}
    assert differences["local (lr=0.1)"].mean == pytest.approx(-0.1)
    assert differences["local (lr=0.2)"].mean == pytest.approx(-0.2)
    assert differences["full (lr=0.1)"] is None


def test_a_setting_that_came_after_a_record_does_not_part_its_seeds(tmp_path):
    """But another value of it does."""
    nsa = {"attention___target_": "longspan.attention.nsa"}
    leave(tmp_path, "older", "nsa", 0, 0.5, **nsa)
    leave(tmp_path, "newer", "nsa", 1, 0.6, **nsa, attention__branch_keys=False, attention__gates="query")
    leave(tmp_path, "other", "nsa", 0, 0.7, **nsa, attention__branch_keys=False, attention__gates="token")
    section, _ = only_section(tmp_path)
    assert [(group.label, len(group.runs)) for group in section.groups] == [("nsa (gates=query)", 2), ("nsa (gates=token)", 1)]


def test_other_data_is_another_section(tmp_path):
    leave(tmp_path, "a", data="addresses")
    leave(tmp_path, "b", data="hiv1")
    found, _ = sections(collect([tmp_path]))
    assert [section.title for section in found] == ["Sequence classification: addresses", "Sequence classification: hiv1"]


def test_other_made_data_is_another_section(tmp_path):
    leave(tmp_path, "dates", data="PairedDataModule", data__generated="dates")
    leave(tmp_path, "numbers", data="PairedDataModule", data__generated="numbers")
    found, _ = sections(collect([tmp_path]))
    assert len(found) == 2


def test_files_in_a_run_s_own_folder_do_not_tell_runs_apart(tmp_path):
    """Nor does a value that is called as the folder is."""
    for seed, name in enumerate(("one", "two")):
        leave(tmp_path, name, "full", seed, data__vocabulary_cache=f"outputs/{name}/vocabulary", data__kind="one")
    section, _ = only_section(tmp_path)
    assert [(group.label, len(group.runs)) for group in section.groups] == [("full", 2)]
    assert section.groups[0].settings["data.kind"] == "one"


def test_a_run_done_again_counts_once_the_latest(tmp_path):
    old = leave(tmp_path, "old", value=0.1)
    leave(tmp_path, "new", value=0.9)
    section, repeats = only_section(tmp_path)
    assert section.groups[0].accuracy("accuracy").mean == 0.9
    assert [run.path.resolve() for run in repeats] == [old.resolve()]


def test_overlapping_arguments_count_a_run_once(tmp_path):
    path = leave(tmp_path, "a")
    found = collect([tmp_path, path, path.parent, tmp_path / "a" / ".." / "a"])
    assert len(found.runs) == 1


def test_runs_that_failed_are_kept_apart_and_broken_files_named(tmp_path):
    leave(tmp_path, "good")
    leave(tmp_path, "oom", seed=1, status="out_of_memory")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "record.json").write_text("{")
    found = collect([tmp_path])
    assert len(found.complete) == 1
    assert [run.record.status for run in found.unfinished] == ["out_of_memory"]
    [(path, reason)] = found.broken
    assert path.parent.name == "broken"
    assert "not JSON" in reason
    section, _ = sections(found)[0][0], None
    assert section.groups[0].accuracy("accuracy").n == 1, "a run that ran out of memory is in no mean"


def test_a_seed_that_came_out_as_nan_spoils_the_mean_rather_than_vanish(tmp_path):
    for seed, value in enumerate([0.5, float("nan")]):
        leave(tmp_path, f"f{seed}", "full", seed, 0.5)
        leave(tmp_path, f"l{seed}", "local", seed, value)
    section, _ = only_section(tmp_path)
    row = rows_of(section)[1]
    assert row.mean is None
    assert row.difference is None


def test_the_reference_may_be_another(tmp_path):
    leave(tmp_path, "a", "local", value=0.5)
    leave(tmp_path, "b", "bigbird", value=0.75)
    section, _ = only_section(tmp_path, reference="local")
    assert [group.label for group in section.groups] == ["local", "bigbird"]
    assert rows_of(section)[1].difference.mean == pytest.approx(0.25)


def test_the_reference_may_be_a_label_where_variants_are_the_same(tmp_path):
    for seed in (0, 1):
        leave(tmp_path, f"none{seed}", "local", seed, 0.5 + seed / 10, model__stem=None)
        leave(tmp_path, f"seven{seed}", "local", seed, 0.75 + seed / 10, model__stem=7)
    section, _ = only_section(tmp_path, reference="local (stem=none)")
    assert [group.label for group in section.groups] == ["local (stem=none)", "local (stem=7)"]
    assert section.difference(section.groups[0], "accuracy") is None
    assert rows_of(section)[1].difference.mean == pytest.approx(0.25)


def test_nothing_found_says_where(tmp_path):
    with pytest.raises(RecordError, match=str(tmp_path)):
        collect([tmp_path])
    with pytest.raises(RecordError, match="does not exist"):
        collect([tmp_path / "none"])


def test_the_csv_holds_full_numbers(tmp_path):
    import csv
    import io

    leave(tmp_path, "a", "full", 0, 1 / 3, cost=10**19)
    leave(tmp_path, "b", "local", 0, 0.5, cost=7)
    section, _ = only_section(tmp_path)
    rows = list(csv.DictReader(io.StringIO(csv_text([(section, rows_of(section))]))))
    assert [row["variant"] for row in rows] == ["full", "local"]
    assert float(rows[0]["mean"]) == 1 / 3
    assert float(rows[1]["difference"]) == pytest.approx(0.5 - 1 / 3)
    assert float(rows[0]["total_flops"]) == 1e19
    assert [row["on_front"] for row in rows] == ["False", "True"]


def test_a_callback_that_changes_the_model_makes_another_group_one_that_watches_does_not(tmp_path):
    averaged = {"callbacks__ema": {"_target_": "AveragedWeights", "decay": 0.999}}
    for seed in range(2):
        leave(tmp_path, f"raw{seed}", seed=seed, value=0.5, callbacks__progress={"style": "plain"})
        leave(tmp_path, f"ema{seed}", seed=seed, value=0.7, **averaged)
    leave(tmp_path, "raw2", seed=2, value=0.5, callbacks__ema=None)
    section, repeats = only_section(tmp_path)
    assert {group.label: len(group.runs) for group in section.groups} == {"full (ema=none)": 3, "full (ema=on)": 2}
    assert not repeats
    leave(tmp_path, "slow", value=0.6, callbacks__ema={"_target_": "AveragedWeights", "decay": 0.9999})
    labels = [group.label for group in only_section(tmp_path)[0].groups]
    assert labels == ["full (ema=none, decay=none)", "full (ema=on, decay=0.999)", "full (ema=on, decay=0.9999)"]


def test_runs_on_other_draws_of_the_data_are_no_repeats(tmp_path):
    for draw in range(2):
        leave(tmp_path, f"full{draw}", "full", 0, 0.5 + draw / 10, data__seed=draw)
        leave(tmp_path, f"local{draw}", "local", 0, 0.4 + draw / 5, data__seed=draw)
    section, repeats = only_section(tmp_path)
    assert [len(group.runs) for group in section.groups] == [2, 2]
    assert not repeats
    assert rows_of(section)[1].difference.pairs == 2

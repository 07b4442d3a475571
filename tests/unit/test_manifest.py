"""The record of a run: what is written is read again, and what another version wrote is read or refused."""

import json
import math

import pytest

from chatsmith.assistant import find
from chatsmith.config import Config
from chatsmith.errors import RunError
from chatsmith.report.page import write_report
from chatsmith.runs.listing import find_runs
from chatsmith.runs.manifest import VERSION, Manifest, Summary, read_manifest, write_manifest
from chatsmith.runs.run import check_directory, open_run
from chatsmith.runs.runtime import StopSignals
from chatsmith.screen.console import Screen
from chatsmith.stages.table import BY_NAME, TABLE, VOICES

WHOLE = {
    "version": VERSION,
    "status": "forced",
    "recipe": "a\udcff.toml",
    "config": {"later": {"key": 1}, "seed": 3, "data": {"sources": ["b\udcff.jsonl", {"source": "c", "count": 2}]}},
    "data": [{"spec": "b\udcff.jsonl", "records": 3, "dropped": [{"origin": "b:1", "reason": "r"}], "sha256": None}],
    "stages": {
        "sft": {"status": "skipped", "model_dir": None, "report": {"steps": 3, "of its own": [1, None, {"x": "y"}]}},
        "rl": {"status": "failed", "unfit_for": ["x"], "summary": {"gold_gain": None, "gold_greedy": [0.5, None]}},
    },
    "summary": {"seconds": 1.5, "gold_gain": None, "gold_greedy": [0.5, None], "later": [1]},
    "later": {"x": None},
}


def written(directory, value):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    return directory


def test_what_is_written_is_read_again_with_what_is_unknown_and_the_order_of_the_configuration(tmp_path):
    manifest = read_manifest(written(tmp_path, WHOLE))
    assert math.isnan(manifest.summary.gold_gain) and math.isnan(manifest.stages["rl"].summary.gold_greedy[1])
    write_manifest(tmp_path, manifest)
    again = json.loads((tmp_path / "manifest.json").read_text())
    assert again == WHOLE
    assert list(again["config"]) == list(WHOLE["config"])


def test_a_stage_that_passed_with_a_warning_is_another_word_for_people():
    stages = {"sft": {"status": "passed", "unfit_for": ["x"]}, "rl": {"status": "failed", "unfit_for": ["x"]}}
    manifest = Manifest.model_validate({"stages": stages})
    assert [entry.shown for entry in manifest.stages.values()] == ["warned", "failed"]


def recorded(config, without=()):
    """A configuration as an older version wrote it: without some of its keys."""
    whole = config.model_dump(mode="json")
    for name in without:
        group, _, key = name.partition(".")
        (whole[group] if key else whole).pop(key or group)
    return whole


def test_a_run_of_version_1_is_continued_where_its_stages_are_finished_and_becomes_one_of_this_version(tmp_path):
    config = Config(actor_model="m", rl={"kl_coef": 0.3})
    old = {"version": 1, "config": recorded(config, ["rl.returns_lam", "trackers", "gates"]), "recipe": "r"}
    old |= {"stages": {"sft": {"status": "passed", "verdict": "v", "summary": {"sft_loss_last": 1.0}}}}
    old |= {"summary": {"seconds": 5.0, "sft_loss_last": 1.0}, "status": "interrupted", "later": "stays"}
    written(tmp_path, old)
    options = {"recipe": "r", "force": False, "restart_from": None, "screen": Screen(), "stop": StopSignals()}
    run = open_run(config, tmp_path, **options)
    assert run.finished("sft") and not run.finished("reward")
    new = json.loads((tmp_path / "manifest.json").read_text())
    assert (new["version"], new["status"], new["later"], new["seconds_before"]) == (VERSION, "running", "stays", 5.0)
    assert new["stages"] == old["stages"] and new["summary"]["sft_loss_last"] == 1.0
    assert new["config"] == config.model_dump(mode="json")


@pytest.mark.parametrize(
    ("without", "differs"), [("rl.returns_lam", "rl.returns_lam"), ("rl.kl_coef", "rl.kl_coef"), ("rl", "rl.kl_coef")]
)
def test_a_key_that_a_run_lacks_is_its_default_and_no_other_value(tmp_path, without, differs):
    config = Config(actor_model="m", rl={"kl_coef": 0.3, "returns_lam": 0.9})
    written(tmp_path, {"stages": {}, "config": recorded(config, [without])})
    with pytest.raises(RunError, match=rf"another configuration: .*{differs} \(.* there, 0\.[39] here\)"):
        check_directory(config, tmp_path, None)


def test_a_newer_version_is_refused_by_every_reader_in_one_line(tmp_path):
    run = written(tmp_path / "run", WHOLE | {"version": VERSION + 1, "stages": ["of another shape"]})
    for read in (find, write_report, lambda path: check_directory(Config(actor_model="m"), path, None)):
        with pytest.raises(RunError, match=r"manifest\.json: written by a newer version of chatsmith") as refused:
            read(run)
        assert len(str(refused.value).splitlines()) == 1
    (entry,) = find_runs(tmp_path)
    assert "newer version" in entry.problem


def test_what_a_run_says_is_an_error_as_soon_as_it_is_of_another_kind(tmp_path):
    for change in (
        {"status": "fine"},
        {"version": True},
        {"version": 0},
        {"threads": -1},
        {"data": [{"records": "3"}]},
    ):
        with pytest.raises(RunError, match=rf"not the manifest of a run \({next(iter(change))}"):
            read_manifest(written(tmp_path, WHOLE | change))


def test_what_the_table_of_stages_names_is_there():
    for stage in TABLE:
        assert {voice.folder for voice in stage.voices.values()} <= set(stage.models)
        for column in stage.columns:
            assert {column.figure, *filter(None, [column.since])} <= set(Summary.model_fields)
    assert [name for name, stage in BY_NAME.items() if stage.shows_answers] == ["pairs", "rl"]
    assert list(VOICES) == [
        "sft",
        "pairs",
        "pairs-ema",
        "rl",
        "ema",
    ]  # the names of answers in samples.jsonl, and of `chat --stage`

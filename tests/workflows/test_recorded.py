"""Run folders read back: which there are, how far they got, what is wrong with them."""

import json

import pytest

from airnet_cli.errors import CheckpointError
from airnet_cli.workflows.recorded import find_recorded, read_log


def test_runs_and_folders_of_runs_each_once(write_run, tmp_path):
    """A run may be named by itself and by the folder above it."""
    first, second = write_run("a"), write_run("b", scores=None)
    found = find_recorded([second, tmp_path / "runs", first])
    assert [each.run for each in found.runs] == [second, first]
    assert [each.state() for each in found.runs] == ["unfinished: 2 of 200 epochs", "finished"]
    assert found.broken == ()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("preset.json", "{", "can't be read"),
        ("preset.json", "[]", "holds no JSON object"),
        ("preset.json", '{"preset": {"data": {}}}', "in the preset"),
        ("log.jsonl", "{}\nnonsense\n", "can't be read"),
        ("log.jsonl", "1\n", "a line of it is no JSON object"),
    ],
    ids=["cut", "list", "no preset", "log", "log of numbers"],
)
def test_a_broken_run_is_named_with_its_reason(write_run, tmp_path, name, text, reason):
    """It does not hide the others, and is not dropped."""
    good, bad = write_run("good"), write_run("bad")
    (bad / name).write_text(text)
    found = find_recorded([tmp_path / "runs"])
    assert [each.run for each in found.runs] == [good]
    ((run, why),) = [(each.run, each.reason) for each in found.broken]
    assert run == bad
    assert reason in why
    assert "\n" not in why


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone", "'.*gone' does not exist"), ("file", "is a file"), (".", "holds none")],
)
def test_what_is_no_run(tmp_path, name, message):
    """A path that was given must be a run, or hold some."""
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=message):
        find_recorded([tmp_path / name])


def test_old_presets_are_read(write_run):
    """A key that came later has its default."""
    run = write_run("old")
    record = json.loads((run / "preset.json").read_text())
    del record["preset"]["training"]["train_ids"]
    (run / "preset.json").write_text(json.dumps(record))
    (found,) = find_recorded([run]).runs
    assert found.preset.training.train_ids == 0


def test_a_run_without_a_log_has_no_epochs(write_run):
    """It was stopped in its first epoch."""
    run = write_run("new", scores=None)
    (run / "log.jsonl").unlink()
    assert read_log(run) == []

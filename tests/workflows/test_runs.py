"""Run folders read back, which of them are of one setting, and what rows are called."""

import json

import pytest

from airnet_cli.config.presets import load_preset
from airnet_cli.errors import CheckpointError
from airnet_cli.workflows.runs import (
    differing_keys,
    find_runs,
    labels,
    new_run,
    read_log,
    settings_key,
    settings_of,
)


def test_runs_and_folders_of_runs_each_once(write_run, tmp_path):
    """A run may be named by itself and by the folder above it."""
    first, second = write_run("a"), write_run("b", scores=None)
    found, broken = find_runs([second, tmp_path / "runs", first])
    assert [each.run for each in found] == [second, first]
    assert [each.state() for each in found] == ["unfinished: 2 of 200 epochs", "finished"]
    assert broken == []


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("preset.json", "{", "can't be read"),
        ("preset.json", "[]", "it is no JSON object"),
        ("preset.json", '{"preset": {"data": {}}}', "in the preset"),
        ("log.jsonl", "{}\nnonsense\n", "can't be read"),
    ],
    ids=["cut", "list", "no preset", "log"],
)
def test_a_broken_run_is_named_with_its_reason(write_run, tmp_path, name, text, reason):
    """It does not hide the others, and is not dropped."""
    good, bad = write_run("good"), write_run("bad")
    (bad / name).write_text(text)
    found, broken = find_runs([tmp_path / "runs"])
    assert [each.run for each in found] == [good]
    assert [each.run for each in broken] == [str(bad)]
    assert reason in broken[0].reason
    assert "\n" not in broken[0].reason


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone", "'.*gone' does not exist"), ("file", "is a file"), (".", "has none in it")],
)
def test_what_is_no_run(tmp_path, name, message):
    """A path that was given must be a run, or have some."""
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=message):
        find_runs([tmp_path / name])


def test_old_presets_are_read(write_run):
    """A key that came later has its default."""
    run = write_run("old")
    record = json.loads((run / "preset.json").read_text())
    del record["preset"]["training"]["train_ids"]
    (run / "preset.json").write_text(json.dumps(record))
    ((found,), _) = find_runs([run])
    assert found.preset.training.train_ids == 0


def test_a_run_without_a_log_has_no_epochs(write_run):
    """It was stopped in its first epoch."""
    run = write_run("new", scores=None)
    (run / "log.jsonl").unlink()
    assert read_log(run) == []


def test_runs_that_start_in_the_same_second_get_a_number(tmp_path):
    """And a root that is a file is refused."""
    runs = {new_run(tmp_path / "runs", "demo") for _ in range(3)}
    assert len(runs) == 3
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't make the run folder"):
        new_run(tmp_path / "file", "demo")


def of(*overrides):
    return settings_of(load_preset("demo", overrides))


@pytest.mark.parametrize(
    ("override", "is_same"),
    [
        ("training.seed=7", True),
        ("training.workers=5", True),
        ("evaluation.batch_size=7", True),
        ("description=other words", True),
        ("training.epochs=7", False),
        ("model.variant=baseline", False),
        ("evaluation.normalize_heads=true", False),
    ],
)
def test_one_setting(override, is_same):
    """The seed, and what changes no score, do not make another setting."""
    assert (settings_key(of()) == settings_key(of(override))) is is_same


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([of()], ["airnet"]),
        ([of(), of("model.variant=baseline")], ["airnet", "baseline"]),
        (
            [of("training.epochs=4"), of("training.epochs=3")],
            ["airnet, epochs=4", "airnet, epochs=3"],
        ),
        (
            [{"model.variant": "airnet", "a.x": 1, "b.x": 1}, {"model.variant": "airnet"}],
            ["airnet, a.x=1, b.x=1", "airnet, a.x=null, b.x=null"],
        ),
    ],
    ids=["alone", "variant", "epochs", "keys of one name"],
)
def test_labels_name_what_differs(settings, expected):
    """The variant first, then only what is not the same in all."""
    assert labels(settings) == expected


def test_differing_keys_are_in_the_order_of_the_preset():
    """Whatever the order in which they were set."""
    changed = of("training.epochs=3", "model.variant=baseline", "data.name=x")
    assert differing_keys([of(), changed]) == ["data.name", "model.variant", "training.epochs"]

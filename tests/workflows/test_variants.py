"""Variants x seeds: the plan, what is trained, by whom, and what happens when a run fails."""

import json
import shutil
import threading
import time

import pytest

from airnet_cli.config.presets import load_preset
from airnet_cli.core.files import lock_folder
from airnet_cli.errors import CheckpointError, DataError, TrainingError, UsageError
from airnet_cli.workflows import train as training
from airnet_cli.workflows.runs import VARIANTS
from airnet_cli.workflows.train import Listener, TrainOptions, resume
from airnet_cli.workflows.variants import plan_variants, read_variants, train_variants


@pytest.fixture
def plan(tmp_path):
    """Plan two seeds of two variants of the preset `market1501`."""

    def of(*overrides):
        return plan_variants(
            load_preset("market1501", overrides),
            preset_name="market1501",
            variants=("baseline", "airnet"),
            runs=2,
            runs_root=tmp_path / "runs",
        )

    return of


def states(plan):
    return [(each.variant, each.seed, each.state) for each in plan.runs]


def test_an_empty_root(plan, tmp_path):
    """All is missing, each seed a whole comparison; nothing is written."""
    planned = plan()
    assert states(planned) == [
        ("baseline", 1, "missing"),
        ("airnet", 1, "missing"),
        ("baseline", 2, "missing"),
        ("airnet", 2, "missing"),
    ]
    names = [each.run.name.rpartition("-") for each in planned.runs]
    assert [name[0] for name in names] == [
        "market1501-baseline-s1",
        "market1501-airnet-s1",
        "market1501-baseline-s2",
        "market1501-airnet-s2",
    ]
    assert len({name[2] for name in names}) == 1, "the rest of the settings is the same"
    assert not (tmp_path / "runs").exists()


def test_runs_are_found_by_their_preset(plan, write_run):
    """Whatever their names; another setting is another run."""
    finished = write_run("by-hand", "model.variant=baseline", "training.workers=0")
    stopped = write_run("stopped", seed=2, scores=None, epochs=7)
    write_run("longer", "training.epochs=300")
    planned = plan()
    assert states(planned) == [
        ("baseline", 1, "finished"),
        ("airnet", 1, "missing"),
        ("baseline", 2, "missing"),
        ("airnet", 2, "unfinished"),
    ]
    assert (planned.runs[0].run, planned.runs[3].run) == (finished, stopped)
    assert planned.runs[3].finished_epochs == 7
    assert [planned.count(state) for state in ("finished", "unfinished", "missing")] == [1, 1, 2]


def test_of_several_runs_the_one_that_is_furthest(plan, write_run):
    """Finished before unfinished, then the one with the most epochs."""
    write_run("a", seed=2, scores=None, epochs=9)
    write_run("z", seed=2, scores=None, epochs=3)
    assert plan().runs[3].run.name == "a"
    write_run("finished", seed=2, epochs=1)
    assert plan().runs[3].run.name == "finished"


def test_other_settings_have_other_names(plan):
    """Two plans under one root do not mean the same folders."""
    assert not {each.run for each in plan().runs} & {
        each.run for each in plan("training.epochs=9").runs
    }


def test_names_of_variants():
    """In the order given, each once; a typo trains nothing."""
    assert read_variants("all") == VARIANTS
    assert read_variants(" baseline , airnet,baseline ") == ("baseline", "airnet")
    for text in ("", "airnet,", "all,airnet", "Airnet"):
        with pytest.raises(UsageError, match="there is no variant"):
            read_variants(text)


def _ignore(*_):
    """Hears nothing."""


@pytest.fixture
def trained(monkeypatch, write_run):
    """The runs that were trained; training takes a moment here and writes the files of a run."""
    template = write_run("template")
    record = json.loads((template / "preset.json").read_text())
    asked = []

    def train_into(run, preset, _):
        asked.append(run.name.rpartition("-")[0] or run.name)
        time.sleep(0.05)
        shutil.copytree(template, run, dirs_exist_ok=True)
        values = preset.model_dump(mode="json")
        (run / "preset.json").write_text(json.dumps(record | {"preset": values}))

    monkeypatch.setattr(training, "train_into", train_into)
    return asked


@pytest.fixture
def train_plan(tmp_path):
    """Train two seeds of two variants under `plan`, and give the comparison."""

    def train(notes=None):
        names = {"preset_name": "market1501", "runs_root": tmp_path / "plan"}
        preset = load_preset("market1501")
        plan = plan_variants(preset, variants=("baseline", "airnet"), runs=2, **names)
        options = TrainOptions(
            data_root=tmp_path,
            runs_root=tmp_path / "plan",
            device="cpu",
            listener=Listener(noted=_ignore if notes is None else notes.append),
        )
        return train_variants(plan, options, on_run=_ignore)

    return train


ALL = ["market1501-baseline-s1", "market1501-airnet-s1"]
ALL += ["market1501-baseline-s2", "market1501-airnet-s2"]


def test_each_run_once_then_none(trained, train_plan):
    """In order; a second call finds everything finished and compares the same."""
    (table,) = train_plan().tables
    assert trained == ALL
    assert [(row.label, row.seeds) for row in table.rows] == [
        ("baseline", (1, 2)),
        ("airnet", (1, 2)),
    ]
    assert train_plan().tables == (table,)
    assert trained == ALL


def test_two_processes_share_the_work(trained, train_plan):
    """At the same time they train each run once, none twice."""
    threads = [threading.Thread(target=train_plan) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trained) == sorted(ALL)


def test_a_run_that_another_process_trains_is_left_alone(trained, train_plan, tmp_path):
    """It is named, and the others are trained."""
    train_plan()
    trained.clear()
    run = next((tmp_path / "plan").glob("market1501-airnet-s1-*"))
    (run / "scores.json").unlink()
    notes = []
    with lock_folder(run):
        comparison = train_plan(notes)
    assert trained == []
    assert notes == [f"{run} is being trained by another process; left to it"]
    assert [each.run for each in comparison.not_counted] == [str(run)]
    train_plan()
    assert trained == ["market1501-airnet-s1"], "now it is free, and goes on"


def test_a_run_that_fails_does_not_stop_the_others(monkeypatch, trained, train_plan):
    """The error at the end says which failed and why."""
    whole = training.train_into

    def train_into(run, preset, options):
        if preset.model.variant == "airnet" and preset.training.seed == 1:
            raise TrainingError("the loss is nan in epoch 3")
        whole(run, preset, options)

    monkeypatch.setattr(training, "train_into", train_into)
    with pytest.raises(TrainingError) as caught:
        train_plan()
    assert str(caught.value) == ("a run of 4 failed\nairnet, seed 1: the loss is nan in epoch 3")
    assert trained == [name for name in ALL if name != "market1501-airnet-s1"]


def test_what_can_not_be_trained_leaves_no_folder(monkeypatch, train_plan, tmp_path):
    """No data set: nothing was made that a later look would take for a run."""

    def train_into(*_):
        raise DataError("there is no data set")

    monkeypatch.setattr(training, "train_into", train_into)
    with pytest.raises(DataError):
        train_plan()
    assert list((tmp_path / "plan").iterdir()) == []


def test_a_run_that_is_being_trained_is_not_resumed(write_run, tmp_path):
    """A second process would spoil the files of the first."""
    run = write_run("busy", scores=None)
    options = TrainOptions(data_root=tmp_path, runs_root=tmp_path, device="cpu")
    with (
        lock_folder(run),
        pytest.raises(CheckpointError, match="is being trained by another process"),
    ):
        resume(run, options)

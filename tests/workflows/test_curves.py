"""The curves of runs: their points are those in the run folders."""

import json
import sys

import pytest

from airnet_cli.errors import CheckpointError, UsageError
from airnet_cli.workflows.curves import draw_curves, panels_of
from airnet_cli.workflows.runs import read_recorded


def curves_of(*runs):
    """The curves that are drawn of run folders, by panel."""
    return {panel.title: panel.curves for panel in panels_of([read_recorded(run) for run in runs])}


def test_one_run(write_run):
    """Losses by epoch, mAP of the scored epochs, and the CMC, named by the run's folder."""
    found = curves_of(write_run("a", epochs=3))
    assert found["Loss"] == [("a", [(1, 4), (2, 2), (3, pytest.approx(4 / 3))])]
    assert found["Identity loss, mean of heads"] == [("a", [(1, 3), (2, 1.5), (3, 1)])]
    assert found["mAP"] == [("a", [(3, 50)])]
    ((_, cmc),) = found["CMC"]
    assert cmc == [(1, 60), (5, pytest.approx(70)), (10, 75), (20, pytest.approx(80))]


def test_every_recorded_rank_is_drawn(write_run):
    """The complete CMC is used where the scores have it."""
    run = write_run("a")
    scores = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps(scores | {"cmc_curve": [0.25, 0.5, 1.0]}))
    assert curves_of(run)["CMC"] == [("a", [(1, 25), (2, 50), (3, 100)])]


def test_several_runs_are_named_by_what_differs(write_run):
    """By settings, which the seeds of one setting share; or by seeds; or by folders."""
    small = [write_run(f"a{seed}", seed=seed) for seed in (1, 2)]
    other = write_run("b", "model.variant=baseline", scores=None)
    found = curves_of(*small, other)
    assert [name for name, _ in found["Loss"]] == ["airnet", "airnet", "baseline"]
    assert [name for name, _ in found["CMC"]] == ["airnet", "airnet"]
    assert [name for name, _ in curves_of(*small)["Loss"]] == ["airnet, seed=1", "airnet, seed=2"]
    unlike = write_run("c", "model.variant=baseline", preset="demo")
    assert [name for name, _ in curves_of(small[0], unlike)["Loss"]] == ["a1", "c"]


def test_the_image_and_its_notes(write_run, tmp_path):
    """The PNG is drawn of what can be read, and the notes name the other runs."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'airnet[plots]'")
    runs = [write_run("a"), write_run("b", seed=2, scores=None), write_run("c", seed=3)]
    (runs[2] / "preset.json").write_text("{")
    drawn = draw_curves([tmp_path / "runs"], output=tmp_path / "curves.png")
    assert drawn.image.read_bytes().startswith(b"\x89PNG")
    assert len(drawn.notes) == 2
    assert "c: " in drawn.notes[0]
    assert "can't be read" in drawn.notes[0]
    assert "b is unfinished" in drawn.notes[1]


@pytest.mark.parametrize(
    ("epochs", "name", "kind", "message"),
    [
        pytest.param(None, "c.png", UsageError, "needs run folders", id="no run"),
        pytest.param(0, "c.png", CheckpointError, "nothing to draw yet", id="no epoch"),
        pytest.param(1, "c.svg", UsageError, "PNG only", id="other format"),
    ],
)
def test_what_can_not_be_drawn(write_run, tmp_path, epochs, name, kind, message):
    """One line says why, and no file is left."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'airnet[plots]'")
    runs = [] if epochs is None else [write_run("a", scores=None, epochs=epochs)]
    with pytest.raises(kind, match=message):
        draw_curves(runs, output=tmp_path / name)
    assert not (tmp_path / name).exists()


def test_without_matplotlib(write_run, tmp_path, monkeypatch):
    """The message names the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'airnet\[plots\]'"):
        draw_curves([write_run("a")], output=tmp_path / "a.png")

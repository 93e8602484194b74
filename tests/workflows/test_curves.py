"""The curves of runs: which lines there are, and that their points are those of the files."""

import json

import pytest

from airnet_cli.errors import CheckpointError, UsageError
from airnet_cli.workflows import curves
from airnet_cli.workflows.curves import draw_curves


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Return a function that gives the panels which would be drawn, by title."""

    def draw(*runs):
        kept = {}
        monkeypatch.setattr(
            curves,
            "draw_panels",
            lambda path, panels, title: kept.update({panel.title: panel for panel in panels}),
        )
        notes = draw_curves(runs, output=tmp_path / "c.png").notes
        return kept, notes

    return draw


def by_name(panel):
    """The points of each line of a panel."""
    return {line.name: list(zip(line.x, line.y, strict=True)) for line in panel.lines}


def test_one_run_has_a_line_for_each_head(write_run, drawn):
    """Losses and the share of active triplets by epoch; CMC of the whole and of each head."""
    panels, notes = drawn(write_run("a", epochs=3))
    assert notes == ()
    assert set(panels) == {"Identity loss", "Triplet loss", "Active triplets", "CMC"}
    assert by_name(panels["Identity loss"])["head A2"] == [(1, 3), (2, 1.5), (3, 1)]
    assert by_name(panels["Active triplets"])["head I"] == [(1, 1), (2, 0.5), (3, 1 / 3)]
    found = by_name(panels["CMC"])
    assert set(found) == {"whole embedding", "head A1", "head A2", "head I"}
    assert [rank for rank, _ in found["head I"]] == [1, 5, 10, 20]
    assert [found for _, found in found["whole embedding"]] == pytest.approx([60, 70, 75, 80])


def test_every_rank_that_is_recorded_is_drawn(write_run, drawn):
    """The whole curve is taken where the scores have it."""
    run = write_run("a")
    scores = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps(scores | {"cmc_curve": [0.25, 0.5, 1.0]}))
    panels, _ = drawn(run)
    assert by_name(panels["CMC"])["whole embedding"] == [(1, 25), (2, 50), (3, 100)]


def test_several_runs_have_a_line_each(write_run, drawn):
    """They are named by what differs, and a run without scores has no CMC."""
    runs = [
        write_run("a", "model.variant=baseline"),
        write_run("b", "model.variant=airnet"),
        write_run("c", "model.variant=airnet_gc", scores=None),
    ]
    panels, notes = drawn(*runs)
    assert set(by_name(panels["Loss"])) == {"baseline", "airnet", "airnet_gc"}
    assert by_name(panels["Loss"])["airnet"] == [(1, 4), (2, 2)]
    assert set(by_name(panels["CMC"])) == {"baseline", "airnet"}
    assert len(notes) == 1
    assert "c is unfinished" in notes[0]


def test_runs_that_differ_by_seed_alone_are_named_by_it(write_run, drawn):
    """No two lines have one name."""
    panels, _ = drawn(write_run("a", seed=1), write_run("b", seed=2))
    assert set(by_name(panels["Loss"])) == {"airnet, seed=1", "airnet, seed=2"}


def test_runs_of_one_setting_share_a_name(write_run, drawn):
    """Beside another setting, its seeds are lines of one colour with one entry in the legend."""
    runs = [write_run(f"a{seed}", seed=seed, epochs=seed) for seed in (1, 2, 3)]
    panels, _ = drawn(*runs, write_run("b", "model.variant=baseline"))
    assert [(line.name, len(line.x)) for line in panels["Loss"].lines] == [
        ("airnet (3 runs)", 1),
        ("airnet (3 runs)", 2),
        ("airnet (3 runs)", 3),
        ("baseline", 2),
    ]


def test_the_roc_is_that_of_the_calibration(write_run, drawn):
    """False-accept against true-accept rates, of the whole and of each head."""
    run = write_run("a")
    point = {"far": 0.01, "threshold": 0.5, "false_accept_rate": 0.01, "true_accept_rate": 0.75}
    scores = {
        "same_person_pairs": 100,
        "different_person_pairs": 1000,
        "equal_error_rate": 0.1,
        "equal_error_threshold": 0.4,
        "points": [point],
    }
    calibration = {
        "format": "airnet-calibration",
        "format_version": 1,
        "fingerprint": "f",
        "data": "tiny",
        "camera_filter": True,
        "precision": "fp32",
        "normalize_heads": False,
        "flip": False,
        "whole": scores,
        "heads": {"A1": scores},
    }
    (run / "calibration.json").write_text(json.dumps(calibration))
    panels, _ = drawn(run)
    assert panels["ROC"].is_log
    assert by_name(panels["ROC"]) == {"whole embedding": [(0.01, 75)], "head A1": [(0.01, 75)]}


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        pytest.param(lambda write: [], UsageError, "needs run folders", id="none"),
        pytest.param(
            lambda write: [write("a", scores=None, epochs=0)],
            CheckpointError,
            "nothing to draw yet",
            id="no epoch",
        ),
        pytest.param(
            lambda write: [write(f"r{seed}", seed=seed) for seed in range(25)],
            UsageError,
            "25 runs are too many",
            id="many",
        ),
    ],
)
def test_what_can_not_be_drawn(write_run, tmp_path, make, kind, message):
    """One line says why, and no picture is left."""
    with pytest.raises(kind, match=message):
        draw_curves(make(write_run), output=tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_a_broken_run_is_named(write_run, drawn):
    """It is left out with its reason, the others are drawn."""
    good, bad = write_run("a"), write_run("b")
    (bad / "preset.json").write_text("{")
    panels, notes = drawn(good, bad)
    assert "Loss" not in panels  # one run is left: heads, not runs
    assert "b" in notes[0]
    assert "can't be read" in notes[0]

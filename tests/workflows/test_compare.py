"""Rows, means, deviations, pairs and the paper's figures, on scores that were written by hand."""

import math
import os
from pathlib import Path

import pytest

from airnet_cli.errors import UsageError
from airnet_cli.workflows.compare import compare

# Seed -> (mAP, rank-1).
BASELINE = {1: (0.40, 0.70), 2: (0.44, 0.71), 3: (0.42, 0.75)}
AIRNET = {1: (0.45, 0.72), 2: (0.46, 0.71), 3: (0.50, 0.76)}


def mean_and_std(values):
    """Two loops, as in a textbook."""
    total = 0.0
    for value in values:
        total += value
    mean = total / len(values)
    squares = 0.0
    for value in values:
        squares += (value - mean) ** 2
    return mean, math.sqrt(squares / (len(values) - 1))


def near(spread, expected):
    return (spread.mean, spread.std) == pytest.approx(expected)


@pytest.fixture
def runs(write_run, tmp_path):
    """Two variants with three seeds each."""
    for variant, scores in (("airnet", AIRNET), ("baseline", BASELINE)):
        for seed, each in scores.items():
            write_run(f"{variant}-{seed}", f"model.variant={variant}", seed=seed, scores=each)
    return tmp_path / "runs"


def test_a_row_is_the_mean_and_deviation_over_seeds(runs):
    """In the order of Table 3, of every score."""
    ((table,), ()) = (compare([runs]).tables, compare([runs]).not_counted)
    assert (table.data, [row.label for row in table.rows]) == ("market1501", ["baseline", "airnet"])
    for row, scores in zip(table.rows, (BASELINE, AIRNET), strict=True):
        maps, rank1 = [each[0] for each in scores.values()], [each[1] for each in scores.values()]
        assert row.seeds == (1, 2, 3)
        assert near(row.scores["mAP"], mean_and_std(maps))
        assert near(row.scores["rank1"], mean_and_std(rank1))
        assert near(row.scores["mAP_trapezoid"], mean_and_std([each - 0.01 for each in maps]))
        assert near(row.scores["mINP"], mean_and_std([each / 2 for each in maps]))
        assert near(row.scores["rank5"], mean_and_std([each + 0.1 for each in rank1]))
        assert near(row.scores["rank10"], mean_and_std([each + 0.15 for each in rank1]))
        assert near(row.heads["A1"]["mAP"], mean_and_std([each - 0.01 for each in maps]))
    assert list(table.rows[1].heads) == ["A1", "A2", "I"]


def test_differences_are_paired_by_seed(runs):
    """Mean and deviation of the differences, not differences of means and deviations."""
    baseline, airnet = compare([runs]).tables[0].rows
    assert baseline.against is None
    differences = [AIRNET[seed][0] - BASELINE[seed][0] for seed in (1, 2, 3)]
    assert (airnet.against.row, airnet.against.seeds) == ("baseline", (1, 2, 3))
    assert near(airnet.against.differences["mAP"], mean_and_std(differences))
    assert airnet.against.differences["mAP"].std != pytest.approx(airnet.scores["mAP"].std)


def test_only_shared_seeds_are_paired(runs, write_run):
    """A seed that one side lacks counts in its own row only."""
    write_run("more", "model.variant=airnet", seed=9, scores=(0.9, 0.9))
    airnet = compare([runs]).tables[0].rows[1]
    assert (airnet.seeds, airnet.against.seeds) == ((1, 2, 3, 9), (1, 2, 3))


def test_against_another_row(runs):
    """By variant: the differences turn around."""
    baseline, airnet = compare([runs], against="airnet").tables[0].rows
    assert airnet.against is None
    assert baseline.against.differences["mAP"].mean == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("override", "against", "expected"),
    [
        ("training.epochs=9", None, None),
        ("training.epochs=9", "baseline", "baseline, epochs=200"),
        ("model.backbone=resnet18", None, None),
        ("training.epochs=9", "airnet, epochs=200", "airnet, epochs=200"),
    ],
    ids=["longer", "asked for", "another network", "label"],
)
def test_the_row_of_another_setting(runs, write_run, override, against, expected):
    """A baseline that was trained differently is taken only where it was asked for."""
    write_run("other", override, scores=(0.9, 0.9))
    rows = compare([runs], against=against).tables[0].rows
    (other,) = (row for row in rows if len(row.runs) == 1)
    assert (other.against and other.against.row) == expected


def test_each_row_has_the_baseline_of_its_own_setting(runs, write_run):
    """Two schedules, two baselines."""
    for variant in ("baseline", "airnet"):
        write_run(f"{variant}-long", f"model.variant={variant}", "training.epochs=300")
    rows = compare([runs]).tables[0].rows
    assert {row.label: row.against.row for row in rows if row.against} == {
        "airnet, epochs=200": "baseline, epochs=200",
        "airnet, epochs=300": "baseline, epochs=300",
    }


def test_an_unknown_row_is_refused(runs):
    """The message names those that there are."""
    with pytest.raises(UsageError, match="'parallel_gc' is no row; there are: baseline; airnet"):
        compare([runs], against="parallel_gc")


def test_the_papers_figures_and_what_differs(write_run):
    """A run of the recipe differs in nothing; another says in what."""
    recipe = write_run("recipe", scores=(0.9, 0.95))
    small = write_run(
        "small",
        "model.backbone=mobilenet_v2",
        "model.init=weights/own.pth",
        "data.height_px=128",
        "data.width_px=64",
        "training.train_ids=300",
        "training.epochs=8",
        "training.workers=0",
        protocol={"flip": True, "data": {"name": "market1501", "query_images": 100}},
    )
    ((alone,),) = (table.rows for table in compare([recipe]).tables)
    assert alone.paper.differs == ()
    assert alone.paper.mAP_difference == pytest.approx(0.007)
    ((row,),) = (table.rows for table in compare([small]).tables)
    assert {(each.setting, each.ours, each.paper) for each in row.paper.differs} == {
        ("model.backbone", "mobilenet_v2", "resnet50_ibn"),
        ("model.init", "weights/own.pth", "imagenet"),
        ("data.height_px", "128", "384"),
        ("data.width_px", "64", "192"),
        ("training.train_ids", "300", "0"),
        ("training.epochs", "8", "200"),
        ("scores.flip", "true", "false"),
        ("query images", "100", "3368"),
    }


def test_the_backbone_of_table_1_differs_in_nothing(write_run):
    """AIR-Net with ResNet-50 and GC has figures of its own."""
    ((row,),) = (
        table.rows for table in compare([write_run("gc", "model.backbone=resnet50_gc")]).tables
    )
    assert (row.paper.backbone, row.paper.differs) == ("resnet50_gc", ())


def test_data_sets_do_not_mix(runs, write_run):
    """Each has its table, and one that the paper lacks has no figures."""
    write_run("own", "data.name=shop")
    market, shop = compare([runs]).tables
    assert (market.data, shop.data) == ("market1501", "shop")
    assert (shop.rows[0].label, shop.rows[0].paper) == ("airnet", None)


def test_how_it_was_scored_is_a_part_of_the_setting(runs, write_run):
    """Re-ranked scores are not averaged with plain ones."""
    write_run("reranked", seed=4, protocol={"rerank": {"k1": 20}})
    labels = [row.label for row in compare([runs]).tables[0].rows]
    assert labels == [
        "baseline, rerank=false",
        "airnet, rerank=false",
        'airnet, rerank={"k1": 20}',
    ]


def test_a_row_says_how_it_was_scored_not_what_was_asked_for(write_run):
    """The camera filter stands in the preset and in the scores: it is named once."""
    off = {"camera_filter": False}
    write_run("off", "evaluation.camera_filter=false", protocol=off)
    runs = write_run("on").parent
    labels = {row.label for row in compare([runs]).tables[0].rows}
    assert labels == {"airnet, camera_filter=false", "airnet, camera_filter=true"}


def test_what_is_left_out_is_listed(runs, write_run):
    """Unfinished, broken, and older than another of the same setting and seed."""
    unfinished = write_run("stopped", scores=None)
    broken = write_run("broken")
    (broken / "scores.json").write_text('{"version": 1}')
    newer = write_run("again", "model.variant=baseline", seed=2, scores=(0.5, 0.5))
    for path, seconds in ((runs / "baseline-2", 100), (newer, 200)):
        os.utime(path / "scores.json", (seconds, seconds))
    comparison = compare([runs])
    reasons = {Path(each.run): each.reason for each in comparison.not_counted}
    assert reasons.keys() == {unfinished, broken, runs / "baseline-2"}
    assert reasons[unfinished] == "unfinished: 2 of 200 epochs"
    assert "can't be read (KeyError: 'protocol')" in reasons[broken]
    assert reasons[runs / "baseline-2"] == f"{newer} is newer, of the same setting and seed"
    assert comparison.tables[0].rows[0].runs[1].scores["mAP"] == 0.5


def test_nothing_finished_is_no_error(write_run):
    """There is no table, and the list says why."""
    comparison = compare([write_run("stopped", scores=None)])
    assert comparison.tables == ()
    assert [each.reason for each in comparison.not_counted] == ["unfinished: 2 of 200 epochs"]

"""What people see of `airnet evaluate`, and requests that contradict themselves."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airnet_cli.cli.app import app

runner = CliRunner()


@pytest.fixture
def words(untrained_run: Path, tiny_data_root: Path, tmp_path: Path) -> list[str]:
    """A command line that scores a run folder (trained elsewhere) on `tiny`."""
    run = shutil.copytree(untrained_run, tmp_path / "run")
    options = ["--data", "tiny", "--data-root", str(tiny_data_root), "--workers", "0"]
    return ["evaluate", str(run), *options]


def test_departures_from_the_usual_protocol_are_said(words: list[str], tmp_path: Path) -> None:
    """The row's label has the heads; stderr says what else was done, and where it was written."""
    table = tmp_path / "queries.csv"
    options = ["--heads", "A1, I", "--flip", "--rerank", "--per-query", str(table)]
    options += ["--no-camera-filter", "-o", str(tmp_path / "scores.json")]
    result = runner.invoke(app, [*words, *options])
    assert result.exit_code == 0, result.stderr
    labels = re.findall(r"^(head\S* .+?)  ", result.stdout, re.MULTILINE)
    assert labels == ["heads A1 + I", "head A1 alone", "head I alone"]
    for said in (
        "re-ranked by k-reciprocal neighbours (k1 20, k2 6, lambda 0.3)",
        "each image embedded as the mean of image and mirror image",
        "across data sets: trained on demo, scored on tiny",
        "images of the query's own camera counted too",
        f"scores written to {tmp_path / 'scores.json'}",
        f"single queries written to {table}",
    ):
        assert said in result.stderr


def test_scores_that_are_not_the_runs_own_are_printed(words: list[str], tmp_path: Path) -> None:
    """stderr says that nothing was written, and which option writes them."""
    before = {file.name for file in (tmp_path / "run").iterdir()}
    result = runner.invoke(app, words)
    assert "scores not written: " in result.stderr
    assert "-o FILE.json" in result.stderr
    assert {file.name for file in (tmp_path / "run").iterdir()} == before


def test_json_has_the_protocol(words: list[str]) -> None:
    """stdout is one object, whatever stderr says."""
    result = runner.invoke(app, [*words, "--heads", "A1", "--json"])
    assert result.exit_code == 0, result.stderr
    protocol = json.loads(result.stdout)["protocol"]
    assert (protocol["heads"], protocol["flip"], protocol["rerank"]) == (["A1"], False, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--query q.npy --gallery g.npy --flip", "--flip and --heads are for a run"),
        ("--query q.npy --gallery g.npy --heads A1", "--flip and --heads are for a run"),
        ("--query q.npy --gallery g.npy --metric euclidean --rerank", "by cosine, not euclidean"),
        ("--query q.npy", "--query and --gallery go together"),
    ],
)
def test_options_that_contradict_each_other(options: str, message: str) -> None:
    """One line, before anything is read."""
    result = runner.invoke(app, ["evaluate", *options.split()])
    assert result.exit_code == 1
    assert message in result.stderr

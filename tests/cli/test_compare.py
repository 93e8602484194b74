"""`airnet compare` as people and programs see it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from airnet_cli.cli.app import app

runner = CliRunner()


@pytest.fixture
def runs(write_run, tmp_path):
    """Two variants, two seeds, and a run that was stopped."""
    for variant, gain in (("baseline", 0.0), ("airnet", 0.031)):
        for seed in (1, 2):
            scores = (0.5 + gain + 0.01 * seed, 0.6 + gain)
            write_run(f"{variant}-{seed}", f"model.variant={variant}", seed=seed, scores=scores)
    write_run("stopped", scores=None)
    return tmp_path / "runs"


def compared(*words):
    result = runner.invoke(app, ["compare", *map(str, words)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def cells(line):
    return [cell for cell in line.replace("─", "").split("  ") if cell.strip()]


def test_tables_for_people(runs):
    """Means with deviations, differences with signs, the paper, and what was left out."""
    lines = compared(runs).splitlines()
    assert lines[0].startswith("market1501: percent, mean ± standard deviation over seeds;")
    rows = [[cell.strip() for cell in cells(line)] for line in lines]
    assert ["baseline", "2", "51.5 ± 0.7", "60.0 ± 0.0"] in rows
    assert ["airnet", "2", "54.6 ± 0.7", "63.1 ± 0.0", "+3.1 ± 0.0", "+3.1 ± 0.0"] in rows
    assert ["airnet", "54.6", "89.3", "-34.7", "63.1", "95.2", "-32.1"] in rows
    assert [f"{runs / 'stopped'}", "unfinished: 2 of 200 epochs"] in rows
    assert not any("what differs" in line for line in lines), "nothing does: it is the recipe"


def test_one_seed_has_no_deviation(runs):
    """`± 0.0` of a single run would say what nobody measured."""
    table = compared(runs / "baseline-1")
    assert "51.0" in table
    assert "± 0" not in table


def test_details(runs):
    """More scores and each head only where they are asked for."""
    assert "mAP_trapezoid" not in compared(runs)
    detailed = compared(runs, "--details")
    assert "mAP_trapezoid" in detailed
    assert "head alone" in detailed


def test_markdown(runs):
    """Tables that a Markdown page shows, with the same cells."""
    text = compared(runs, "--markdown")
    assert "| baseline | 2 | 51.5 ± 0.7 | 60.0 ± 0.0 | | |" in text.splitlines()
    assert "|---|---:|---:|---:|---:|---:|" in text.splitlines()
    assert text.splitlines()[1] == ""


def test_json_has_fractions_of_every_score(runs):
    """Nothing is rounded, and runs are named."""
    (table,) = json.loads(compared(runs, "--json"))["tables"]
    airnet = table["rows"][1]
    assert airnet["scores"]["mAP"]["mean"] == pytest.approx(0.546)
    assert airnet["against"]["differences"]["mAP"]["mean"] == pytest.approx(0.031)
    assert [run["seed"] for run in airnet["runs"]] == airnet["seeds"] == [1, 2]
    assert airnet["settings"]["training.epochs"] == 200
    assert "training.seed" not in airnet["settings"]


def test_without_runs_it_takes_the_runs_root(runs, monkeypatch):
    """`airnet compare` alone shows all that there is."""
    monkeypatch.chdir(runs.parent)
    monkeypatch.delenv("AIRNET_RUNS", raising=False)
    assert "54.6 ± 0.7" in compared()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "error: 'gone' does not exist; give run folders, or a folder of them\n"),
        (["--json", "--markdown"], "error: --markdown and --json are two ways to print"),
    ],
)
def test_errors_are_one_line(words, message):
    """On stderr, with exit code 1, and nothing on stdout."""
    result = runner.invoke(app, ["compare", *words])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(message)


def test_it_fits_80_columns_and_needs_no_torch(runs):
    """A comparison of JSON files is there at once, and readable in a small terminal."""
    program = f"""
import sys
from rich.console import Console
from airnet_cli.cli import output
from airnet_cli.cli.app import app
output._console = lambda stream: Console(file=stream, width=80, highlight=False)
app(["compare", {str(runs)!r}, "--details"], standalone_mode=False)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(
        line.split() == ["airnet", "A2", "52.6", "±", "0.7", "59.1", "±", "0.0"] for line in lines
    )

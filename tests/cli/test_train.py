"""`airnet train` and `airnet evaluate` as people and programs call them."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from airnet_cli.cli.app import app

SCORE_KEYS = {"mAP", "mAP_trapezoid", "mINP", "cmc", "cmc_curve", "queries"}
VIPER = Path(__file__).resolve().parents[3] / "shared" / "data" / "viper.zip"


def _airnet(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_train_then_evaluate(
    scarce_data_root: Path, tmp_path: Path, tiny_overrides: tuple[str, ...]
) -> None:
    """Train prints a table on stdout and its progress on stderr; evaluate takes the newest run."""
    roots = ("--data-root", scarce_data_root, "--runs-root", tmp_path)
    sets = [word for value in tiny_overrides for word in ("--set", value)]
    trained = _airnet("train", "--preset", "demo", *sets, *roots)
    assert trained.exit_code == 0, trained.stderr
    assert trained.stdout.startswith("run ")
    lines = trained.stderr.splitlines()
    header = lines.index(next(line for line in lines if line.startswith("epoch   loss")))
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["1/2", "2/2"]
    assert all(len(line) <= 80 for line in lines[header : header + 3])
    (run,) = tmp_path.iterdir()
    assert run.name.startswith("demo-")

    evaluated = _airnet("evaluate", "--workers", 0, *roots)
    assert evaluated.exit_code == 0, evaluated.stderr
    assert f"evaluating the newest finished run: {run}" in evaluated.stderr
    assert [line.split("  ")[0] for line in evaluated.stdout.splitlines()[2:]] == [
        "whole embedding",
        "head A1 alone",
        "head A2 alone",
        "head I alone",
    ]


def test_variants_are_trained_once(
    scarce_data_root: Path, tmp_path: Path, tiny_overrides: tuple[str, ...]
) -> None:
    """The plan on stderr, the comparison on stdout; the same command again trains nothing."""
    roots = ("--data-root", scarce_data_root, "--runs-root", tmp_path)
    sets = [word for value in tiny_overrides for word in ("--set", value)]
    words = ("train", "-p", "demo", *sets, "--set", "training.epochs=1", *roots)
    words += ("--set", "training.learning_rate_epochs=[]", "--variants", "airnet, baseline")
    trained = _airnet(*words)
    assert trained.exit_code == 0, trained.stderr
    assert "2 runs: 0 finished, 0 to go on with, 2 to train" in trained.stderr
    assert "run 1 of 2: airnet, seed 1" in trained.stderr
    assert {run.name.rpartition("-")[0] for run in tmp_path.iterdir()} == {
        "demo-airnet-s1",
        "demo-baseline-s1",
    }
    again = _airnet(*words)
    assert "2 runs: 2 finished, nothing to train\nairnet: seed 1 finished" in again.stderr
    assert "run 1 of" not in again.stderr
    assert again.stdout == trained.stdout
    rows = [line.split()[:2] for line in again.stdout.splitlines()]
    assert rows.index(["baseline", "1"]) + 1 == rows.index(["airnet", "1"])
    planned = json.loads(_airnet(*words, "--dry-run", "--json").stdout)
    assert [each["state"] for each in planned["plan"]] == ["finished", "finished"]


def test_evaluate_json_is_a_contract(tiny_run: Path, tiny_data_root: Path, tmp_path: Path) -> None:
    """Exactly the documented keys, fractions, and nothing but JSON on stdout."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    result = _airnet("evaluate", run, "--data-root", tiny_data_root, "--workers", 0, "--json")
    assert result.exit_code == 0, result.stderr
    scores = json.loads(result.stdout)
    assert set(scores) == {"version", "heads", "protocol"} | SCORE_KEYS
    assert set(scores["heads"]) == {"A1", "A2", "I"}
    for part in (scores, *scores["heads"].values()):
        assert set(part) >= SCORE_KEYS
        assert set(part["cmc"]) == {"1", "5", "10", "20"}
        assert part["cmc"] == {rank: part["cmc_curve"][int(rank) - 1] for rank in part["cmc"]}
        assert set(part["queries"]) == {"total", "counted", "not_counted"}
        assert all(0 <= part[key] <= 1 for key in ("mAP", "mAP_trapezoid", "mINP"))
    assert json.loads((run / "scores.json").read_text()) == scores


def test_dry_run_json_is_a_contract() -> None:
    """The keys that the documentation names, for a data set that is not even prepared."""
    result = _airnet("train", "--preset", "market1501", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    described = json.loads(result.stdout)
    assert set(described) == {"version", "preset", "heads", "embedding_size", "parameters"}
    assert described["embedding_size"] == 6144
    assert described["parameters"] == {
        "without_classifiers": 42_681_408,
        "with_classifiers": 42_681_408 + 751 * 6144,
    }


def test_dry_run_shows_settings_as_set_takes_them() -> None:
    """The table's keys can be copied behind --set."""
    result = _airnet("train", "-p", "market1501", "--set", "training.epochs=3", "--dry-run")
    assert result.exit_code == 0, result.stderr
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if "." in line[:20])
    assert rows["training.epochs"].strip() == "3"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(["train"], "error: which preset?", id="no preset"),
        pytest.param(["train", "-p", "market"], "error: no preset has the name", id="name"),
        pytest.param(
            ["train", "--resume", "runs/x", "--seed", "3"], "error: --resume goes on", id="resume"
        ),
        pytest.param(
            ["train", "--resume", "runs/x", "--variants", "all"], "error: --resume", id="both"
        ),
        pytest.param(
            ["train", "-p", "demo", "--variants", "airnt"],
            "error: --variants: there is no variant 'airnt'; give all, or some of baseline,",
            id="variant",
        ),
        pytest.param(
            ["train", "-p", "demo", "--variants", "all", "--set", "model.variant=airnet"],
            "error: --variants and --set model.variant=... both say the variant; give one",
            id="variant twice",
        ),
        pytest.param(
            ["evaluate", "absent"], "error: 'absent' does not exist; give a run folder", id="run"
        ),
        pytest.param(
            ["evaluate", "--query", "q.npy"], "error: --query and --gallery go together", id="query"
        ),
        pytest.param(
            ["evaluate", "--metric", "euclidean"], "error: --metric is for --query", id="metric"
        ),
    ],
)
def test_wrong_request_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, one line on stderr, nothing on stdout."""
    monkeypatch.chdir(tmp_path)
    result = _airnet(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1


@pytest.mark.soak
def test_real_images_from_a_table(tmp_path: Path, tiny_overrides: tuple[str, ...]) -> None:
    """VIPeR: `prepare-data csv`, a short training, an evaluation that repeats its scores."""
    if not VIPER.is_file():
        pytest.skip(f"no VIPeR at {VIPER}")
    data = ("--data-root", tmp_path / "data")
    prepared = _airnet("prepare-data", "csv", VIPER, "--name", "viper", "--workers", 0, *data)
    assert prepared.exit_code == 0, prepared.stderr
    sets = [word for value in tiny_overrides for word in ("--set", value)]
    sets += ["--set", "data.name=viper", "--set", "training.identities_per_batch=8"]
    sets += ["--set", "training.epochs=1", "--set", "training.train_ids=40"]
    runs = ("--runs-root", tmp_path / "runs")
    trained = _airnet("train", "-p", "demo", *sets, *data, *runs, "--json")
    assert trained.exit_code == 0, trained.stderr
    evaluated = _airnet("evaluate", "--json", "--workers", 0, *data, *runs)
    assert evaluated.exit_code == 0, evaluated.stderr
    scores = json.loads(evaluated.stdout)
    assert (scores["queries"]["total"], scores["queries"]["counted"]) == (316, 316)
    assert scores["mAP"] == pytest.approx(json.loads(trained.stdout)["mAP"]["mean"])

"""`airnet evaluate --calibrate`: what it measures, where it is kept, what is shown."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airnet_cli.cli.app import app
from airnet_cli.core.checkpoint import model_fingerprint
from airnet_cli.core.retrieval.calibration import read_calibration


@dataclass
class Evaluated:
    folder: Path
    stdout: str
    stderr: str


def evaluate(model: Path, data_root: Path, *options: str) -> Evaluated:
    words = ["evaluate", str(model), "--data", "tiny", "--data-root", str(data_root)]
    words += ["--workers", "0", *options]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return Evaluated(model, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def calibrated(
    untrained_run: Path, tiny_data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluated:
    """A run folder that was calibrated, and what people saw."""
    run = Path(shutil.copytree(untrained_run, tmp_path_factory.mktemp("calibrated") / "run"))
    return evaluate(run, tiny_data_root, "--calibrate")


def test_the_calibration_lies_beside_the_checkpoint(calibrated: Evaluated) -> None:
    """It names the checkpoint by its fingerprint, and covers the whole and each head."""
    kept = read_calibration(calibrated.folder / "calibration.json")
    assert kept is not None
    assert kept.fingerprint == model_fingerprint(calibrated.folder / "model.safetensors")
    assert (kept.data, kept.camera_filter, kept.flip) == ("tiny", True, False)
    assert list(kept.heads) == ["A1", "A2", "I"]


def test_pairs_are_those_of_the_evaluation(calibrated: Evaluated, tiny_data_root: Path) -> None:
    """Counted from the manifest: junk left out, own camera left out, distractors other people."""
    lines = (tiny_data_root / "tiny" / "manifest.jsonl").read_text().splitlines()[1:]
    images = [json.loads(line) for line in lines]
    queries = [image for image in images if image["split"] == "query"]
    gallery = [i for i in images if i["split"] == "gallery" and i["person_id"] != -1]
    pairs = [(q, g) for q in queries for g in gallery]
    same = [p for p in pairs if p[0]["person_id"] == p[1]["person_id"]]
    across = [p for p in same if p[0]["camera_id"] != p[1]["camera_id"]]
    kept = read_calibration(calibrated.folder / "calibration.json")
    assert kept is not None
    assert kept.whole.same_person_pairs == len(across)
    assert kept.whole.different_person_pairs == len(pairs) - len(same)


def test_people_see_thresholds(calibrated: Evaluated) -> None:
    """A table with the rates that the pairs allow, for the whole and each head."""
    rows = re.findall(r"^(whole embedding|head \w+ alone) +0\.01 ", calibrated.stdout, re.MULTILINE)
    assert rows == ["whole embedding", "head A1 alone", "head A2 alone", "head I alone"]
    assert "equal-error rate" in calibrated.stderr
    assert f"calibration written to {calibrated.folder / 'calibration.json'}" in calibrated.stderr


def test_a_lone_checkpoint_has_its_own(
    untrained_run: Path, tiny_data_root: Path, tmp_path: Path
) -> None:
    """Outside of a run folder the file bears the checkpoint's name; programs get the same."""
    lone = tmp_path / "lone.safetensors"
    shutil.copy(untrained_run / "model.safetensors", lone)
    printed = json.loads(evaluate(lone, tiny_data_root, "--calibrate", "--json").stdout)
    kept = json.loads((tmp_path / "lone.calibration.json").read_text())
    assert printed["calibration"] == kept
    assert kept["format"] == "airnet-calibration"


def test_features_of_other_tools_can_not_be_calibrated() -> None:
    """There is no checkpoint beside which to keep it."""
    result = CliRunner().invoke(
        app, ["evaluate", "--query", "q.npy", "--gallery", "g.npy", "--calibrate"]
    )
    assert result.exit_code == 1
    assert "--calibrate is for a run or checkpoint" in result.stderr

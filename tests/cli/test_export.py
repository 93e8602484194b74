"""`airnet export`: a table or JSON on stdout, which run and which pictures on stderr."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from airnet_cli.cli.app import app


@pytest.fixture
def shop(
    exported_run: Any, quick_exporter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A current folder as after a training run, with some crops."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIRNET_RUNS", raising=False)
    monkeypatch.delenv("AIRNET_DATA", raising=False)
    run = tmp_path / "runs" / "demo"
    run.mkdir(parents=True)
    for name in ("model.safetensors", "preset.json", "scores.json"):
        (run / name).symlink_to(exported_run.model.run / name)
    (tmp_path / "crops").symlink_to(exported_run.path.parents[2] / "crops")
    return tmp_path


def airnet(words: str) -> Result:
    return CliRunner().invoke(app, words.split())


def test_straight_after_a_training_run(shop: Path) -> None:
    """The newest run, said on stderr with the pictures; a line for the whole and for each head."""
    result = airnet("export --images crops")
    assert result.exit_code == 0, result.stderr
    said = result.stderr.splitlines()
    assert said[:2] == [
        "exporting the newest finished run: runs/demo",
        "note: checked on 4 pictures of 'crops'",
    ]
    assert said[2].startswith("wrote runs/demo/model.onnx (")
    header, _, *rows = result.stdout.splitlines()
    assert header.split() == [
        "smallest",
        "cosine",
        "largest",
        "difference",
        "of",
        "values",
        "up",
        "to",
    ]
    assert [row[:15].strip() for row in rows] == [
        *("whole embedding", "head A1", "head A2", "head I")
    ]
    assert Path("runs/demo/model.onnx").is_file()


def test_every_option(shop: Path) -> None:
    """All of them together; JSON alone on stdout."""
    result = airnet(
        "export --checkpoint runs/demo --format onnx -o out/m.onnx --images crops "
        "--data-root data --runs-root runs --json"
    )
    assert result.exit_code == 0, result.stderr
    shape = json.loads(result.stdout)
    assert (shape["version"], shape["exported"], shape["run"]) == (1, "out/m.onnx", "demo")
    size = Path("out/m.onnx").stat().st_size
    assert shape["files"] == [{"path": "out/m.onnx", "bytes": size}]
    assert shape["parity"]["smallest_cosine"] > 0.9999


def test_embedding_by_it(shop: Path) -> None:
    """`embed --runtime onnx` takes the file beside the checkpoint, or the one that is named."""
    assert airnet("export --images crops -o m.onnx").exit_code == 0
    words = "embed crops -o g.npy --workers 0 --runtime onnx"
    result = airnet(words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the runtime onnx runs 'runs/demo/model.onnx', which does not exist" in result.stderr
    result = airnet(f"{words} --exported m.onnx --json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["runtime"].startswith("onnxruntime ")
    result = airnet("match crops/2.png --gallery g.npy --json")  # by torch: the same model
    assert result.exit_code == 0, result.stderr
    best = json.loads(result.stdout)["queries"][0]["matches"][0]
    assert best["row"] == 2
    assert best["score"] > 0.9999


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("runs/demo --checkpoint runs/demo", 1, "error: 'runs/demo' and --checkpoint 'runs/demo'"),
        ("-o m.xml", 1, "error: output 'm.xml' must end in .onnx for onnx"),
        ("nowhere", 1, "error: 'nowhere' does not exist"),
        ("--runs-root none", 1, "error: there is no finished run under 'none'"),
        ("--format tensorrt", 2, "Invalid value for '--format'"),
    ],
    ids=["two models", "suffix", "no run", "no runs", "format"],
)
def test_what_can_not_be_done(shop: Path, words: str, code: int, message: str) -> None:
    """One line on stderr, nothing on stdout, no files."""
    result = airnet(f"export {words}")
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert not Path("runs/demo/model.onnx").exists()


def test_without_the_extra(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says how to install it."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = airnet("export")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: exporting to onnx needs onnxscript, which is not installed: "
        "pip install 'airnet[onnx]'\n"
    )

"""The benchmark program runs and says what it should; whether it is fast is not asked here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "path",
    [
        "pooling",
        "startup",
        "train_step",
        "embed",
        "runtimes",
        "match",
        "index",
        "rerank",
        "evaluate",
    ],
)
@pytest.mark.slow
def test_each_path_is_measured(path):
    """A row has both times, a target and sizes, and the last line is JSON that holds them."""
    if path == "runtimes":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason=f"needs {name}: pip install 'airnet[onnx]'")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--tiny", "--only", path],
        cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    figures = json.loads(last)
    assert figures["sizes"] == "tiny"
    assert figures["cores"] >= 1
    assert figures["rows"]
    for row in figures["rows"]:
        assert row["path"] == path
        assert row["seconds"] > 0
        assert row["rival_seconds"] > 0
        assert any(row["case"] in line for line in table)

"""Files that airnet 0.1.0 wrote stay readable: a run, its checkpoint, a manifest and a gallery.

`fixtures/v1` is a data set of ten drawn images and a run on it. The checkpoint's weights repeat a
short cycle, so that 22 MB pack into a small file.
"""

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from airnet_cli.cli.app import app

WRITTEN = Path(__file__).parent / "fixtures" / "v1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files, as airnet left them."""
    copy = tmp_path_factory.mktemp("fixtures") / "v1"
    shutil.copytree(WRITTEN, copy)
    packed = copy / "run" / "model.safetensors.xz"
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    return copy


@pytest.fixture
def airnet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a command in that folder and returns the JSON it prints."""
    monkeypatch.chdir(folder)

    def run(words: str) -> Any:
        result = CliRunner().invoke(app, [*words.split(), "--json"])
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


def test_the_run_has_the_same_scores(airnet) -> None:
    """Preset, checkpoint and manifest are read; the scores are those that were written."""
    written = json.loads((WRITTEN / "run" / "scores.json").read_text())
    found = airnet("evaluate run --data-root data --device cpu --workers 0")
    for key in ("mAP", "mINP", "cmc"):
        assert found[key] == pytest.approx(written[key], abs=1e-9)
        assert found["heads"]["I"][key] == pytest.approx(written["heads"]["I"][key], abs=1e-9)
    assert found["protocol"]["training"] == written["protocol"]["training"]


def test_the_run_can_be_compared(airnet) -> None:
    """Its preset, log and scores are those of a finished run."""
    compared = airnet("compare run")
    written = json.loads((WRITTEN / "run" / "scores.json").read_text())
    (row,) = compared["tables"][0]["rows"]
    assert row["scores"]["mAP"]["mean"] == pytest.approx(written["mAP"])
    assert compared["not_counted"] == []


def test_the_gallery_is_searched_and_embedded_alike(airnet, folder: Path) -> None:
    """An image of the gallery finds itself; embedding anew gives the same rows."""
    images = "data/shop/images"
    embedding = f"--checkpoint run --heads A1 --device cpu --workers 0 -o {folder}/new.npy"
    airnet(f"embed {images} {embedding}")
    old, new = (np.load(folder / name).astype(np.float64) for name in ("gallery.npy", "new.npy"))
    cosines = (old * new).sum(1) / np.linalg.norm(old, axis=1) / np.linalg.norm(new, axis=1)
    assert cosines == pytest.approx(1, abs=1e-5)
    assert (folder / "gallery.csv").read_text() == (folder / "new.csv").read_text()
    found = airnet(
        f"match {images}/query_4_1.png --gallery gallery.npy --checkpoint run --device cpu"
    )
    best = found["queries"][0]["matches"][0]
    assert Path(best["path"]).name == "query_4_1.png"
    assert best["score"] == pytest.approx(1, abs=1e-5)

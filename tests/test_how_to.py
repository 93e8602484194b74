"""How-to pages in step with the program: examples run, and shapes are shown as they are written."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from airnet_cli.cli.app import app

HOW_TO = Path(__file__).resolve().parents[1] / "docs" / "how-to"


def code_blocks(page: str, language: str) -> list[str]:
    text = (HOW_TO / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def airnet(words: str) -> str:
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture
def place(tmp_path: Path, untrained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a finished run, two images and a gallery of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / untrained_run.name).symlink_to(untrained_run)
    for name, colour in (("one.jpg", "teal"), ("two.jpg", "coral")):
        Image.new("RGB", (50, 120), colour).save(name)
    airnet("embed one.jpg two.jpg -o gallery.npy --workers 0")
    return tmp_path


def test_the_library_page_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks are one program, from top to bottom."""
    names: dict[str, object] = {}
    for block in code_blocks("library.md", "python"):
        exec(block, names)
    assert names["score"].shape == names["appearance"].shape == (2, 2)
    assert capsys.readouterr().out.splitlines() == [
        "[0 1] (2, 1536)",
        "(2, 1536) one.jpg {'A1': slice(0, 512, None), 'A2': slice(512, 1024, None), "
        "'I': slice(1024, 1536, None)}",
    ]


def test_the_page_on_exporting_runs(place: Path, exported_run: Any) -> None:
    """By the embedder and without airnet: the same vector."""
    run = Path("runs") / exported_run.model.run.name
    run.unlink()
    run.symlink_to(exported_run.model.run)
    names: dict[str, Any] = {}
    for block in code_blocks("export.md", "python"):
        exec(block, names)
    np.testing.assert_allclose(names["embedding"], names["embeddings"][0], rtol=1e-4, atol=1e-5)
    assert names["appearance"].shape == (512,)


def test_reading_a_gallery_without_airnet(place: Path) -> None:
    """The Python of the page needs NumPy alone."""
    names: dict[str, object] = {}
    (block,) = code_blocks("embed.md", "python")
    exec(block, names)
    assert names["embeddings"].shape == (2, 1536)
    assert names["paths"] == ["one.jpg", "two.jpg"]


def test_the_record_of_a_gallery_is_as_shown(place: Path) -> None:
    """Keys of gallery.json, and of `embed --json`, in their order."""
    record, printed = (json.loads(block) for block in code_blocks("embed.md", "json"))
    assert sorted(record) == sorted(json.loads(Path("gallery.json").read_text()))
    shown = json.loads(airnet("embed one.jpg -o g.npy --workers 0 --json"))
    assert list(printed) == list(shown)
    assert printed["seconds"].keys() == shown["seconds"].keys()

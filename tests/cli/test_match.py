"""`airnet match`: what people and programs see."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from airnet_cli.cli.app import app
from airnet_cli.core.gallery.files import Gallery, write_gallery


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: gallery.npy of three rows, query.npy with its first and second."""
    monkeypatch.chdir(tmp_path)
    rows = np.array([[1, 0], [0.6, 0.8], [-1, 0]], np.float32)
    columns = {"path": ["a [1].jpg", "b.jpg", "c.jpg"], "camera_id": ["1", "2", "3"]}
    fingerprint = hashlib.sha256(b"a model").hexdigest()
    record = {"fingerprint": fingerprint, "checkpoint": "runs/a/model.safetensors", "run": "a"}
    record |= {"heads": {"A1": [0, 2]}, "normalize_heads": False, "flip": False}
    record |= {"dimensions": 2, "dtype": "float32"}
    write_gallery(Path("gallery.npy"), Gallery(Path(), rows, columns, {}, {}), record)
    np.save("query.npy", rows[:2])
    return tmp_path


def run(*words: str):
    return CliRunner().invoke(app, ["match", "query.npy", "--gallery", "gallery.npy", *words])


def test_people_get_a_table_per_query(folder: Path) -> None:
    """The query's name, then ranks, scores, verdicts, columns and paths; notes go to stderr."""
    result = run("--threshold", "0.6", "-k", "2")
    assert result.exit_code == 0, result.output
    blocks = [block.splitlines() for block in result.stdout.rstrip().split("\n\n")]
    assert [block[0] for block in blocks] == ["query.npy[0]", "query.npy[1]"]
    assert blocks[0][1].split() == ["rank", "score", "verdict", "row", "camera_id", "path"]
    assert blocks[0][3].split(maxsplit=6) == [
        "1",
        "1.0000",
        "same",
        "person",
        "0",
        "1",
        "a [1].jpg",
    ]
    assert blocks[0][4].split() == ["2", "0.6000", "same", "person", "1", "2", "b.jpg"]
    assert "can't be checked" in result.stderr


def test_without_calibration_the_table_has_no_verdict(folder: Path) -> None:
    """The reason, and what to do, stand on stderr."""
    result = run()
    assert "verdict" not in result.stdout
    assert "note: no verdict: " in result.stderr
    assert "--threshold" in result.stderr


def test_programs_get_json(folder: Path) -> None:
    """The shape is a contract: these keys, these types."""
    result = run("--json", "--threshold", "0.9", "--where", "camera_id!=2", "--csv", "out.csv")
    assert json.loads(result.stdout) == {
        "version": 1,
        "gallery": "gallery.npy",
        "rows": 3,
        "rows_searched": 2,
        "checkpoint": None,
        "fingerprint": hashlib.sha256(b"a model").hexdigest(),
        "heads": ["A1"],
        "where": ["camera_id!=2"],
        "reranked": False,
        "decision": {"threshold": 0.9, "far": None, "calibration": None, "data": None},
        "notes": [
            "'query.npy' has no .json next to it that names its model: whether it is the "
            "gallery's model can't be checked"
        ],
        "queries": [
            {
                "query": f"query.npy[{query}]",
                "matches": [
                    {
                        "rank": rank,
                        "row": row,
                        "path": path,
                        "score": pytest.approx(score, abs=1e-6),
                        "verdict": "same person" if score >= 0.9 else "unknown",
                        "columns": {"camera_id": camera},
                    }
                    for rank, row, path, score, camera in found
                ],
            }
            for query, found in enumerate(
                [
                    [(1, 0, "a [1].jpg", 1.0, "1"), (2, 2, "c.jpg", -1.0, "3")],
                    [(1, 0, "a [1].jpg", 0.6, "1"), (2, 2, "c.jpg", -0.6, "3")],
                ]
            )
        ],
    }
    assert "written to out.csv" in result.stderr
    assert (folder / "out.csv").read_text().count("\n") == 5


def test_without_a_verdict_json_says_null(folder: Path) -> None:
    """Programs see that nothing was decided, and why."""
    printed = json.loads(run("--json").stdout)
    assert printed["decision"] is None
    assert printed["queries"][0]["matches"][0]["verdict"] is None
    assert "no verdict" in printed["notes"][-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--heads", "I"], "error: head I: gallery 'gallery.npy' has A1"),
        (["--where", "camera_id>3"], "error: no row of the gallery fulfils camera_id>3"),
        (["--far", "0.01"], "error: --far 0.01: "),
    ],
    ids=["head", "condition", "rate"],
)
def test_errors_are_one_line(folder: Path, words: list[str], message: str) -> None:
    """Nothing on stdout, one line on stderr, exit code 1."""
    result = run(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_a_query_is_needed() -> None:
    """No query is bad usage."""
    result = CliRunner().invoke(app, ["match", "--gallery", "gallery.npy"])
    assert result.exit_code == 2


def test_the_how_to_page_shows_this_shape(folder: Path) -> None:
    """The JSON of the page has the keys that are printed, in their order."""
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "match.md"
    shown = json.loads(page.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0])
    printed = json.loads(run("--json", "--threshold", "0.6").stdout)
    assert list(shown) == list(printed)
    assert list(shown["decision"]) == list(printed["decision"])
    assert list(shown["queries"][0]) == list(printed["queries"][0])
    first = shown["queries"][0]["matches"][0]
    assert list(first) == list(printed["queries"][0]["matches"][0])

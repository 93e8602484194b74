"""`airnet index`: what people and programs see."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from airnet_cli.cli.app import app
from airnet_cli.core.gallery import GalleryWriter, Listing


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with gallery.npy of forty rows."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).standard_normal((40, 12)).astype(np.float32)
    people = {"person_id": tuple(str(row % 10 + 1) for row in range(40))}
    listing = Listing(tuple(f"{row}.jpg" for row in range(40)), people)
    record = {"fingerprint": "ab" * 32, "checkpoint": "x", "heads": {"A1": [0, 12]}}
    record |= {"normalize_heads": False, "flip": False}
    with GalleryWriter(
        Path("gallery.npy"), listing, dimensions=12, dtype="float32", settings={}, resume=False
    ) as writer:
        writer.append(range(40), rows)
        writer.finish(record)
    return tmp_path


def run(*words: str):
    return CliRunner().invoke(app, ["index", *words])


def test_people_get_a_table(folder: Path) -> None:
    """What was made, of how many rows, and how long it took."""
    result = run("gallery.npy")
    assert result.exit_code == 0, result.output
    head, _, row = result.stdout.splitlines()
    assert head.split() == ["gallery", "index", "rows", "time"]
    assert row.split()[:3] == ["gallery.npy", "int8", "40"]


def test_programs_get_json(folder: Path) -> None:
    """The shape is a contract; answers of int8 are exact, so nothing was measured."""
    shown = json.loads(run("gallery.npy", "--json").stdout)
    assert shown.pop("seconds") >= 0
    assert shown == {
        "version": 1,
        "gallery": "gallery.npy",
        "kind": "int8",
        "rows": 40,
        "dimensions": 12,
        "measured": None,
    }


def test_an_approximate_index_says_what_it_misses(folder: Path) -> None:
    """Recall and rank-1 in percent, beside the exact rank-1."""
    pytest.importorskip("usearch", reason="needs usearch: pip install 'airnet[ann]'")
    head, _, row = run("gallery.npy", "--kind", "hnsw").stdout.splitlines()
    assert head.split() == [
        "gallery", "index", "rows", "recall@10", "rank-1", "rank-1,", "exact", "queries", "time"
    ]  # fmt: skip
    assert row.split()[:4] == ["gallery.npy", "hnsw", "40", "100.0"]
    assert row.split()[4] == row.split()[5]
    measured = json.loads(run("gallery.npy", "--kind", "hnsw", "--json").stdout)["measured"]
    assert measured.keys() == {"queries", "seed", "k", "recall", "rank1", "exact_rank1"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("milvus://localhost:19530/people", "whose index Milvus makes itself"),
        ("none.npy", "does not exist"),
        (".", "is a folder"),
        ("gallery.csv", "is not the .npy file"),
    ],
)
def test_what_has_no_index_is_refused(folder: Path, given: str, told: str) -> None:
    """In one line, with exit code 1."""
    result = run(given)
    assert result.exit_code == 1
    assert told in result.stderr
    assert result.stderr.count("\n") == 1

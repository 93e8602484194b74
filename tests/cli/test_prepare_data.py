"""`airnet prepare-data`: tables and JSON on stdout, notes on stderr, one line per error."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from airnet_cli.cli.app import app
from airnet_cli.cli.prepare_data import COMMANDS

TABLE = """path,person_id,camera_id,split
1.png,1,1,train
2.png,2,1,query
3.png,2,2,gallery
4.png,0,2,gallery
5.png,-1,2,gallery
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A table with five images beside it."""
    for number in range(1, 6):
        Image.new("RGB", (8, 16), (90, 120, 60)).save(tmp_path / f"{number}.png")
    (tmp_path / "shop.csv").write_text(TABLE)
    return tmp_path / "shop.csv"


def airnet(*arguments: str | Path) -> Result:
    """Run `airnet prepare-data`."""
    return CliRunner().invoke(app, ["prepare-data", *map(str, arguments)])


def test_table(shop: Path, tmp_path: Path) -> None:
    """People get a row per split on stdout, and on stderr where everything lies."""
    result = airnet("csv", shop, "--data-root", tmp_path / "data")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["shop", "images", "identities", "cameras", "distractors", "junk"] in rows
    assert ["train", "1", "1", "1", "0", "0"] in rows
    assert ["query", "1", "1", "1", "0", "0"] in rows
    assert ["gallery", "3", "1", "1", "1", "1"] in rows
    manifest = tmp_path / "data" / "shop" / "manifest.jsonl"
    assert result.stderr == f"wrote {manifest} (5 images checked); images in {tmp_path}\n"


def test_json_contract(shop: Path, tmp_path: Path) -> None:
    """Version 1 of the shape: programs read it, so it only changes with the version."""
    result = airnet("csv", shop, "--name", "mine", "--data-root", tmp_path / "data", "--json")
    counts = {"images": 1, "ids": 1, "cameras": 1, "distractors": 0, "junk": 0}
    assert json.loads(result.stdout) == {
        "version": 1,
        "name": "mine",
        "manifest": str(tmp_path / "data" / "mine" / "manifest.jsonl"),
        "root": str(tmp_path),
        "counts": {
            "train": counts,
            "query": counts,
            "gallery": {"images": 3, "ids": 1, "cameras": 1, "distractors": 1, "junk": 1},
        },
        "published": None,
        "notes": [],
        "images_verified": 5,
    }


def test_published_counts(tmp_path: Path) -> None:
    """A partial copy shows beside the published counts what is missing, in table and JSON."""
    root = tmp_path / "market"
    for folder, name in [
        ("bounding_box_train", "0002_c1s1_000451_03.jpg"),
        ("query", "0001_c1s1_001051_00.jpg"),
        ("bounding_box_test", "0001_c3s1_000551_00.jpg"),
    ]:
        (root / folder).mkdir(parents=True)
        (root / folder / name).touch()
    arguments = ("market1501", root, "--data-root", tmp_path / "data", "--no-verify")

    result = airnet(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {root} is not the full Market-1501: ")
    assert result.stderr.count("\n") == 1

    result = airnet(*arguments, "--allow-partial")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    train = rows.index(["train", "1", "1", "1", "0", "0"])
    assert rows[train + 1] == ["published", "12,936", "751", "6", "0", "0"]
    assert "note: query: 1 of 3,368 images (3,367 missing)\n" in result.stderr
    assert "(images not checked)" in result.stderr

    data = json.loads(airnet(*arguments, "--allow-partial", "--json").stdout)
    assert data["published"]["gallery"] == {
        "images": 19_732,
        "ids": 750,
        "cameras": 6,
        "distractors": 2_798,
        "junk": 3_819,
    }
    assert data["images_verified"] == 0
    assert "query: 1 of 3,368 images (3,367 missing)" in data["notes"]


def test_data_root_from_the_environment(shop: Path, tmp_path: Path, monkeypatch) -> None:
    """AIRNET_DATA stands in for --data-root, ./data for both."""
    monkeypatch.chdir(tmp_path)
    assert airnet("csv", shop).exit_code == 0
    assert (tmp_path / "data" / "shop" / "manifest.jsonl").is_file()
    monkeypatch.setenv("AIRNET_DATA", str(tmp_path / "elsewhere"))
    assert airnet("csv", shop).exit_code == 0
    assert (tmp_path / "elsewhere" / "shop" / "manifest.jsonl").is_file()


def test_folder(tmp_path: Path) -> None:
    """The split that is asked for, with a note about what was numbered."""
    for person in ("eve", "adam"):
        for camera in (1, 2):
            for shot in (1, 2):
                path = tmp_path / "crops" / f"{person}_c{camera}_{shot}.png"
                path.parent.mkdir(exist_ok=True)
                Image.new("RGB", (8, 16), (90, 120, 60)).save(path)
    result = airnet(
        "folder", tmp_path / "crops", "--name", "shop", "--pattern", "{person_id}_c{camera_id}_*",
        "--test-share", "1", "--seed", "3", "--data-root", tmp_path / "data", "--workers", "0",
        "--json",
    )  # fmt: skip
    shown = json.loads(result.stdout)
    assert shown["name"] == "shop"
    assert [shown["counts"][split]["images"] for split in ("train", "query", "gallery")] == [
        0, 4, 4,
    ]  # fmt: skip
    assert result.stderr.startswith("note: people were numbered from 1 to 2; ")


@pytest.mark.parametrize("boxes", ["labeled", "detected"])
def test_cuhk03(tmp_path: Path, boxes: str) -> None:
    """Each command prepares its own boxes and shows their published counts."""
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        path = tmp_path / "cuhk03-np" / boxes / folder / "0001_c1_1.png"
        path.parent.mkdir(parents=True)
        path.touch()
    given = (tmp_path / "cuhk03-np", "--data-root", tmp_path / "data", "--no-verify")
    result = airnet(f"cuhk03-{boxes}", *given, "--allow-partial")
    rows = [line.split() for line in result.stdout.splitlines()]
    published = {"labeled": "7,368", "detected": "7,365"}[boxes]
    assert ["published", published, "767", "2", "0", "0"] in rows
    assert (tmp_path / "data" / f"cuhk03-{boxes}" / "manifest.jsonl").is_file()
    other = airnet({"labeled": "cuhk03-detected", "detected": "cuhk03-labeled"}[boxes], *given)
    assert other.exit_code == 1
    assert f"has only the {boxes} boxes of CUHK03" in other.stderr


@pytest.mark.parametrize("lists", ["train+val", "train"])
def test_msmt17(tmp_path: Path, lists: str) -> None:
    """With list_train alone nothing published stands beside the training images."""
    for name, folder in (
        ("train", "train"), ("val", "train"), ("query", "test"), ("gallery", "test"),
    ):  # fmt: skip
        line = f"0000/0000_000_01_0303morning_0008_{name}.jpg"
        path = tmp_path / "MSMT17_V1" / folder / line
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        (tmp_path / "MSMT17_V1" / f"list_{name}.txt").write_text(f"{line} 0\n")
    result = airnet(
        "msmt17", tmp_path / "MSMT17_V1", "--lists", lists, "--allow-partial", "--no-verify",
        "--data-root", tmp_path / "data",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    rows = [line.split()[:2] for line in result.stdout.splitlines()]
    assert (["published", "32,621"] in rows) is (lists == "train+val")
    assert ["published", "11,659"] in rows
    assert ["train", "2" if lists == "train+val" else "1"] in rows


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("msmt17", "x", "--lists", "val"), 2, "Invalid value"),
        (("folder", "x", "--test-share", "1.5"), 2, "Invalid value"),
        (("folder", "x", "--pattern", "x"), 1, "error: --pattern 'x' has no {person_id}"),
        (("market1501", "nix"), 1, "error: nix does not exist"),
        (("demo", "--seed", "-1"), 2, "Invalid value"),
        (("market1501", "x", "--workers", "-1"), 2, "Invalid value"),
    ],
)
def test_exit_codes(
    tmp_path: Path, monkeypatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    """1: the request can't be carried out; 2: bad usage."""
    monkeypatch.chdir(tmp_path)
    result = airnet(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    """Each kind of source shows one command with real names."""
    result = airnet(name, "--help")
    assert result.exit_code == 0
    assert f"Example: airnet prepare-data {name}" in result.stdout

"""`airnet embed`: a table or JSON on stdout, which model and what was skipped on stderr."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from airnet_cli.cli.app import app


@pytest.fixture
def shop(tmp_path: Path, untrained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder as after a training run: `runs/` with one that is finished, `gallery/`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIRNET_RUNS", raising=False)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / untrained_run.name).symlink_to(untrained_run)
    (tmp_path / "gallery").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 40), (80 * number, 90, 60)).save(f"gallery/{number}.jpg")
    return tmp_path


def airnet(words: str) -> Result:
    return CliRunner().invoke(app, words.split())


def test_straight_after_a_training_run(shop: Path, untrained_run: Path) -> None:
    """The command of the README, word for word: newest run, said on stderr; table on stdout."""
    result = airnet("embed ./gallery -o gallery.npy")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"embedding with the newest finished run: runs/{untrained_run.name}\n"
    header, _, row = (line.split() for line in result.stdout.splitlines())
    assert header[:6] == ["gallery", "images", "skipped", "dimensions", "type", "heads"]
    assert header[6:] == ["images/s", "reading", "network", "writing"]
    assert row[:5] == ["gallery.npy", "3", "0", "1,536", "float32"]
    assert np.load("gallery.npy").shape == (3, 1536)
    lines = ["path", *(f"gallery/{number}.jpg" for number in range(3))]
    assert Path("gallery.csv").read_text().splitlines() == lines


def test_every_option(shop: Path, untrained_run: Path) -> None:
    """All of them together; JSON alone on stdout, skipped images on stderr and in the JSON."""
    (shop / "gallery" / "1.jpg").write_bytes(b"<html>")
    result = airnet(
        f"embed gallery -o out/g.npy --checkpoint {untrained_run} --dtype float16 --heads I,A1 "
        "--flip --batch-size 2 --workers 0 --precision fp32 --device cpu --on-bad-image skip "
        "--resume --json"
    )
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "skipped ../gallery/1.jpg: not an image\n"
    shape = json.loads(result.stdout)
    expected = {
        "version": 1,
        "gallery": "out/g.npy",
        "rows": 2,
        "dtype": "float16",
        "heads": {"A1": [0, 512], "I": [512, 1024]},
        "flip": True,
        "skipped": [{"path": "../gallery/1.jpg", "reason": "not an image"}],
    }
    assert {key: shape[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("-o g.npy", 1, "error: nothing to embed; give folders or images, or --data"),
        ("gallery --data x --split query -o g.npy", 1, "error: nothing to embed;"),
        ("--data x -o g.npy", 1, "error: --data and --split go together"),
        ("gallery --split query -o g.npy", 1, "error: --data and --split go together"),
        ("gallery -o g.npy --heads A1,X", 1, "error: head X: this network has A1, A2, I"),
        ("gallery -o g.csv", 1, "error: output 'g.csv' must end in .npy"),
        ("gallery -o g.npy --runs-root none", 1, "error: there is no finished run under 'none'"),
        ("gallery", 2, "Missing option '--output'"),
        ("gallery -o people --engine ray", 1, "error: --engine ray computes shards; add --shard"),
        ("gallery -o g.npy --shard-size 2", 1, "error: with --shard-size the output is a folder"),
        ("gallery -o p --shard-size 2 --append", 1, "whole gallery; leave --append out"),
        ("s3://a/b -o g.npy", 1, "error: 's3://a/b' is in object storage, which"),
        ("gallery -o s3://a/b", 1, "error: 's3://a/b' is in object storage, which"),
    ],
    ids=[
        *("nothing", "both", "no split", "no data", "head", "output", "no run", "no output"),
        *(
            "engine alone",
            "shards in a file",
            "shards appended",
            "from objects",
            "to objects",
        ),
    ],
)
def test_what_can_not_be_done(shop: Path, words: str, code: int, message: str) -> None:
    """One line on stderr, nothing on stdout, no files."""
    result = airnet(f"embed {words}")
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert not Path("g.npy").exists()


def broken(path: Path, number: int) -> None:
    """Spoil an image in one of five ways."""
    match number % 5:
        case 0:
            path.write_bytes(b"")
        case 1:
            path.write_bytes(b"<html>")
        case 2:
            path.write_bytes(path.read_bytes()[:200])
        case 3:
            path.unlink()
        case 4:
            path.write_bytes(bytes(1000))


def test_every_twentieth_image_is_broken(shop: Path, untrained_run: Path) -> None:
    """The counts are the same, and right, in table, JSON, record, rows and lines."""
    names = [f"crops/{number:03}.jpg" for number in range(100)]
    Path("crops").mkdir()
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 256, (24, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(name)
    bad = names[7::20]
    for number, name in enumerate(bad):
        broken(Path(name), number)
    Path("list.txt").write_text("\n".join(names))
    words = f"embed list.txt --checkpoint {untrained_run} --on-bad-image skip --batch-size 32"
    table = airnet(f"{words} -o table.npy")
    assert table.exit_code == 0, table.stderr
    assert table.stdout.splitlines()[-1].split()[:3] == ["table.npy", "95", "5"]
    assert [line.split()[1].rstrip(":") for line in table.stderr.splitlines()] == bad
    shape = json.loads(airnet(f"{words} -o g.npy --json").stdout)
    assert (shape["images"], shape["rows"], len(shape["skipped"])) == (100, 95, 5)
    record = json.loads(Path("g.json").read_text())
    assert [each["path"] for each in record["skipped"]] == bad
    assert np.load("g.npy").shape == (95, 1536)
    good = [name for name in names if name not in bad]
    assert Path("g.csv").read_text().splitlines() == ["path", *good]
    # A row is still that of its line: the last picture alone has the same embedding.
    last = airnet(f"embed {good[-1]} --checkpoint {untrained_run} -o last.npy --workers 0")
    assert last.exit_code == 0, last.stderr
    np.testing.assert_allclose(np.load("last.npy")[0], np.load("g.npy")[-1], rtol=1e-4, atol=1e-4)


def test_a_long_list_of_skipped_images_is_cut(shop: Path) -> None:
    """stderr stays readable; the file has them all."""
    Path("list.txt").write_text("gallery/0.jpg\n" + "".join(f"{n}.jpg\n" for n in range(30)))
    result = airnet("embed list.txt -o g.npy --on-bad-image skip --workers 0")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("skipped ") == 21
    assert "all 30 skipped images are listed by --json" in result.stderr
    assert len(json.loads(Path("g.json").read_text())["skipped"]) == 30


def test_a_folder_that_grows(shop: Path, untrained_run: Path) -> None:
    """Twice the same command, then count, match, delete and compact, as in the documents."""
    for replaced in ("0", "3"):
        result = airnet("embed gallery -o people/ --append --workers 0")
        assert result.exit_code == 0, result.stderr
        header, _, row = (line.split() for line in result.stdout.splitlines())
        assert header[:4] == ["gallery", "images", "replaced", "skipped"]
        assert row[:4] == ["people", "3", replaced, "0"]
    shape = json.loads(airnet("embed gallery/1.jpg -o people --append --workers 0 --json").stdout)
    assert (shape["gallery"], shape["rows"], shape["replaced"]) == ("people", 3, 1)
    counted = airnet("gallery count people/")
    assert counted.stdout.splitlines()[-1].split() == ["people", "3"]
    matched = airnet("match gallery/2.jpg --gallery people/ -k 1 --workers 0 --json")
    match = json.loads(matched.stdout)["queries"][0]["matches"][0]
    assert (match["row"], match["path"]) == (1, "gallery/2.jpg")
    deleted = airnet("gallery delete people/ gallery/0.jpg --json")
    assert json.loads(deleted.stdout) == {
        "version": 1,
        "gallery": "people",
        "where": [],
        "rows": 2,
        "deleted": 1,
    }
    assert airnet("gallery compact people/").stdout.splitlines()[-1].split() == [
        "people",
        "2",
        "2",
        "2",
    ]
    compacted = airnet("gallery compact people/ --json")
    assert json.loads(compacted.stdout) == {
        "version": 1,
        "gallery": "people",
        "rows": 2,
        "parts": 1,
        "deleted": 0,
    }
    gone = airnet("gallery delete people/ --where path=x --json")
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert "no row of the gallery fulfils path=x" in gone.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("embed gallery -o x.npy --append", "error: --append adds to a folder, and"),
        ("gallery compact milvus://localhost:1/x", "error: 'milvus://localhost:1/x' is a collecti"),
        ("gallery compact x.npy", "error: 'x.npy' is a gallery in one file"),
        ("gallery delete x.npy a.jpg", "error: 'x.npy' is a gallery in one file"),
        ("gallery delete people", "error: nothing to delete; give images, or conditions"),
        ("gallery count people", "error: 'people' has no parts (000001.json), so it is not a gall"),
        ("match gallery --gallery gallery", "error: 'gallery' has no parts (000001.json), so it"),
    ],
)
def test_folders_that_can_not_be_changed(shop: Path, words: str, message: str) -> None:
    """One line on stderr, nothing on stdout."""
    result = airnet(words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_shards(shop: Path, untrained_run: Path) -> None:
    """A table or JSON on stdout, what became of the whole on stderr; then there is nothing left."""
    words = "embed gallery -o people/ --shard-size 2 --resume --workers 0"
    result = airnet(words)
    assert result.exit_code == 0, result.stderr
    chosen, whole = result.stderr.splitlines()
    assert chosen.startswith("embedding with the newest finished run: ")
    assert whole == "people is complete: 2 parts, 3 rows"
    header, _, row = (line.split() for line in result.stdout.splitlines())
    assert header[:4] == ["gallery", "parts", "done", "here"]
    assert row[:5] == ["people", "2", "2", "0", "3"]
    shape = json.loads(airnet(f"{words} --json").stdout)
    assert shape["shards"] == {"total": 2, "size": 2, "done": 0, "there": 2, "missing": 0}
    match = "match gallery/1.jpg --gallery people/ -k 1 --workers 0"
    assert airnet(match).exit_code == 0
    Path("people/000002.json").unlink()
    Path("gallery/0.jpg").unlink()  # then the folder is another list
    result = airnet(match)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is incomplete: 1 parts are missing (2)" in result.stderr
    assert airnet(f"{match} --allow-partial").exit_code == 0
    result = airnet(words)
    assert "error: 'people' was started with other images or parts" in result.stderr


def test_ray_that_is_not_installed(
    shop: Path, untrained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    result = airnet("embed gallery -o people/ --shard-size 2 --engine ray")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--engine ray needs Ray" in result.stderr
    assert "pip install 'airnet[ray]'" in result.stderr

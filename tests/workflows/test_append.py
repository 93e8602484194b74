"""Adding to a folder of segments: the rows of embedding all images at once, and none twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from airnet_cli.core import gallery as core
from airnet_cli.core.files import lock_folder
from airnet_cli.core.segments import read_manifest, read_segments
from airnet_cli.errors import AirnetError, DataError, OutputError, UsageError
from airnet_cli.workflows.collection import compact_gallery, count_rows, delete_rows
from airnet_cli.workflows.embed import EmbeddedGallery, embed
from airnet_cli.workflows.evaluate import evaluate_features
from airnet_cli.workflows.match import Matching, match


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a table of four crops in `a/` and one of two in `b/`."""
    monkeypatch.chdir(tmp_path)
    draw_crops()
    return tmp_path


def draw_crops() -> None:
    """Put crops and tables into the current folder."""
    random = np.random.default_rng(3)
    for folder, numbers in (("a", range(4)), ("b", range(4, 6))):
        Path(folder).mkdir()
        lines = ["path,person_id,camera_id\n"]
        for number in numbers:
            pixels = random.integers(0, 256, (40, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{number}.png")
            lines.append(f"{folder}/{number}.png,{1 + number % 2},{number}\n")
        Path(f"{folder}.csv").write_text("".join(lines))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, untrained_run: Path) -> Path:
    """A shop whose crops of `b/` are in a gallery of one segment, `people/`."""
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw_crops()
        run_embed(untrained_run, "b.csv")
    return folder


@pytest.fixture
def filled(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a copy of `template`."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_embed(run: Path, *inputs: str, **settings: Any) -> EmbeddedGallery:
    return embed(
        **{
            "inputs": [Path(each) for each in inputs],
            "data_name": None,
            "split": None,
            "data_root": Path("data"),
            "output": Path("people"),
            "model": run,
            "runs_root": Path("runs"),
            "dtype": "float32",
            "heads": None,
            "flip": False,
            "batch_size": 2,
            "workers": 0,
            "device": "cpu",
            "precision": "fp32",
            "on_bad_image": "error",
            "resume": False,
            "on_model": lambda _: None,
            "noted": lambda _: None,
            "append": True,
            **settings,
        }
    )


def run_match(run: Path, gallery: str, **settings: Any) -> Matching:
    return match(
        **{
            "queries": [Path("a/1.png"), Path("b/5.png")],
            "gallery": gallery,
            "k": 6,
            "threshold": None,
            "far": None,
            "heads": None,
            "where": [],
            "rerank": False,
            "checkpoint": run,
            "runs_root": Path("runs"),
            "table": None,
            "picture": None,
            "page": None,
            "device": "cpu",
            "batch_size": 2,
            "workers": 0,
            **settings,
        }
    )


def found(matching: Matching) -> dict[str, Any]:
    """The JSON, but for the gallery's name."""
    return matching.to_dict() | {"gallery": None}


def test_the_same_matches_as_in_one_file(shop: Path, untrained_run: Path) -> None:
    """Appended, replaced, deleted and compacted: all of JSON, a CSV and scores of evaluation are
    those of one file of the same images.
    """
    first = run_embed(untrained_run, "a.csv")
    second = run_embed(untrained_run, "b.csv")
    assert (first.record["rows"], second.record["rows"], second.record["replaced"]) == (4, 6, 0)
    whole = {"append": False}
    run_embed(untrained_run, "a.csv", "b.csv", output=Path("one.npy"), **whole)
    for settings in ({}, {"heads": ["I"], "where": ["camera_id!=5"], "k": 3}):
        expected = found(run_match(untrained_run, "one.npy", **settings))
        assert found(run_match(untrained_run, "people", **settings)) == expected
    run_match(untrained_run, "one.npy", table=Path("1.csv"), page=Path("one.html"))
    run_match(untrained_run, "people", table=Path("2.csv"), picture=Path("people.png"))
    assert Path("2.csv").read_text() == Path("1.csv").read_text()
    scores = [
        evaluate_features(
            query=Path("one.npy"), gallery=Path(place), metric="cosine", camera_filter=False
        )
        for place in ("one.npy", "people")
    ]
    assert scores[0].whole.mAP == scores[1].whole.mAP

    # What is deleted and replaced is as if it had never been there, or there alone.
    left = delete_rows("people", images=[Path("a/0.png"), Path("never.png")], where=())
    assert (left.rows, left.chosen) == (5, 1)
    Image.new("RGB", (20, 40), (9, 200, 30)).save("a/2.png")
    third = run_embed(untrained_run, "a/2.png")
    assert (third.record["rows"], third.record["replaced"]) == (5, 1)
    assert read_segments(Path("people")).columns["path"][-1] == "../a/2.png"
    run_embed(untrained_run, "a.csv", output=Path("two.npy"), **whole)
    row = core.read_gallery(Path("two.npy")).embeddings[2]
    replacement = read_segments(Path("people")).embeddings[-1]
    np.testing.assert_allclose(replacement, row, rtol=1e-4, atol=1e-5)
    before = found(run_match(untrained_run, "people"))
    done = compact_gallery("people")
    assert (done.rows, done.segments, done.deleted) == (5, 3, 2)
    assert found(run_match(untrained_run, "people")) == before
    assert len(read_manifest(Path("people")).segments) == 1
    assert count_rows("people", where=["camera_id>3"]).to_dict("chosen") == {
        "version": 1,
        "gallery": "people",
        "where": ["camera_id>3"],
        "rows": 5,
        "chosen": 2,
    }


def test_embedding_again_changes_nothing(shop: Path, untrained_run: Path) -> None:
    """The same command twice: new rows in the place of the old ones, none of them twice."""
    run_embed(untrained_run, "a.csv")
    before = read_segments(Path("people"))
    again = run_embed(untrained_run, "a.csv")
    after = read_segments(Path("people"))
    assert (again.record["replaced"], again.record["segment"]) == (4, "segment-000002")
    assert after.columns == before.columns
    assert np.array_equal(np.asarray(after.embeddings), np.asarray(before.embeddings))
    names = {path.name for path in Path("people").iterdir()}
    assert names == {"gallery.json", *(f"segment-000002.{s}" for s in ("npy", "csv", "json"))}


def stop_after(images: int) -> Any:
    """A progress callback that presses Ctrl-C."""

    def progress(stage: str, done: int, total: int | None, unit: str) -> None:
        if done == images:
            raise KeyboardInterrupt

    return progress


def test_a_stopped_job_goes_on(shop: Path, untrained_run: Path) -> None:
    """Until it is finished the gallery is as it was, also when rows are deleted and compacted
    meanwhile; then it has what an undisturbed job would have added.
    """
    run_embed(untrained_run, "b.csv")
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_embed(untrained_run, "a.csv", progress=stop_after(2), noted=notes.append)
    assert notes.pop() == "2 images are done; go on with the same command and --resume"
    assert read_segments(Path("people")).columns["camera_id"] == ("4", "5")
    delete_rows("people", images=(), where=["camera_id=4"])
    compact_gallery("people")
    resumed = run_embed(untrained_run, "a.csv", resume=True, noted=notes.append)
    assert notes == ["going on after 2 of 4 images"]
    assert (resumed.images_before, resumed.images) == (2, 2)
    assert read_segments(Path("people")).columns["camera_id"] == ("5", "0", "1", "2", "3")
    assert not [path for path in Path("people").iterdir() if path.name.startswith(".")]
    run_embed(untrained_run, "a.csv", output=Path("a.npy"), append=False)
    assert Path("people/segment-000002.npy").read_bytes() == Path("a.npy").read_bytes()


def test_images_that_can_not_be_read(shop: Path, untrained_run: Path) -> None:
    """They get no row, and the row that such an image had stays."""
    run_embed(untrained_run, "a.csv")
    Path("a/1.png").write_bytes(b"")
    again = run_embed(untrained_run, "a.csv", on_bad_image="skip")
    assert (again.record["rows"], again.record["replaced"]) == (4, 3)
    assert again.record["skipped"] == [{"path": "../a/1.png", "reason": "empty file"}]
    assert read_segments(Path("people")).columns["camera_id"] == ("1", "0", "2", "3")


def test_json_shape(shop: Path, untrained_run: Path) -> None:
    """As for a file, with the segment's name and the number of rows that it replaced."""
    shape = run_embed(untrained_run, "a.csv").to_dict()
    one = run_embed(untrained_run, "a.csv", output=Path("one.npy"), append=False).to_dict()
    assert [key for key in shape if key not in one] == ["segment", "replaced"]
    assert [key for key in one if key not in shape] == []
    assert (shape["gallery"], shape["segment"]) == ("people", "segment-000001")
    assert {key: shape[key] for key in ("rows", "heads", "dtype", "run", "skipped")} == {
        key: one[key] for key in ("rows", "heads", "dtype", "run", "skipped")
    }
    json.dumps(shape)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"heads": ["A1"]}, DataError, "this command and gallery 'people' differ in heads"),
        ({"flip": True}, DataError, "this command and gallery 'people' differ in flip: true and"),
        ({"dtype": "float16"}, DataError, 'differ in dtype: "float16" and "float32"'),
        ({"append": False}, UsageError, "'people' is a gallery of segments; add to it with -o peo"),
        (
            {"append": False, "output": Path("people/gallery.npy")},
            UsageError,
            "'people' is a gallery of segments; add to it",
        ),
        ({"output": Path("x.npy")}, UsageError, r"and 'x.npy' is a file, .* as in -o people/"),
        ({"output": Path("a.csv")}, UsageError, "and 'a.csv' is a file"),
        ({"output": Path("a.csv/x")}, OutputError, "can't make the folder 'a.csv/x': Not a dir"),
        ({"inputs": [Path("nowhere")]}, DataError, "'nowhere' does not exist"),
        ({"inputs": [Path("a")], "output": Path("new")}, DataError, "'a/0.png' can't be read"),
    ],
    ids=["heads", "flip", "dtype", "append", "into", "npy", "file", "place", "input", "image"],
)
def test_what_can_not_be_done(
    filled: Path,
    untrained_run: Path,
    settings: dict[str, Any],
    error: type[AirnetError],
    message: str,
) -> None:
    """One line, and nothing is written."""
    Path("a/0.png").write_bytes(b"")
    before = {path: path.is_file() and path.read_bytes() for path in filled.rglob("*")}
    with pytest.raises(error, match=message) as raised:
        run_embed(untrained_run, "a.csv", **settings)
    assert "\n" not in str(raised.value)
    assert {path: path.is_file() and path.read_bytes() for path in filled.rglob("*")} == before


def test_another_model_is_refused(filled: Path, untrained_run: Path) -> None:
    """The fingerprint decides, before anything is embedded."""
    record = json.loads(Path("people/gallery.json").read_text()) | {"fingerprint": "cd" * 32}
    Path("people/gallery.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"'people' differ in model: \w+ and cdcdcdcdcdcd, so that"):
        run_embed(untrained_run, "a.csv")


def test_two_writers(filled: Path, untrained_run: Path) -> None:
    """While one holds the folder, adding, deleting and compacting say so; reading does not care."""
    taken = "gallery 'people' is being written by another process; wait for it"
    with lock_folder(Path("people")):
        with pytest.raises(DataError, match=taken):
            run_embed(untrained_run, "a.csv")
        with pytest.raises(DataError, match=taken):
            delete_rows("people", images=(), where=["camera_id=0"])
        with pytest.raises(DataError, match=taken):
            compact_gallery("people")
        assert count_rows("people", where=()).rows == 2


def test_an_empty_gallery(filled: Path, untrained_run: Path) -> None:
    """All rows may be deleted; there is nothing to find then, and it can be filled again."""
    assert delete_rows("people", images=(), where=["camera_id>=0"]).rows == 0
    with pytest.raises(DataError, match="gallery 'people' is empty; `airnet embed --append` fills"):
        run_match(untrained_run, "people")
    with pytest.raises(DataError, match="'people' has no row of these images"):
        delete_rows("people", images=[Path("a/0.png")], where=())
    assert run_embed(untrained_run, "b.csv").record["rows"] == 2


@pytest.mark.parametrize(
    ("gallery", "error", "message"),
    [
        ("one.npy", UsageError, "'one.npy' is a gallery of one file, which is written once"),
        ("a", DataError, "'a' has no gallery.json, so it is no gallery"),
        ("nowhere", DataError, "'nowhere' has no gallery.json, so it is no gallery"),
        ("a.csv", DataError, "'a.csv' has no gallery.json, so it is no gallery"),
    ],
)
def test_what_has_no_rows_to_delete(
    shop: Path, gallery: str, error: type[AirnetError], message: str
) -> None:
    """Deleting from it and compacting it are refused, in one line."""
    with pytest.raises(error, match=message):
        delete_rows(gallery, images=[Path("a/0.png")], where=())
    with pytest.raises(error, match=message):
        compact_gallery(gallery)

"""Embedding into a file, a folder, and shards: in step with the table, and resumed at the part."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from airnet_cli.core import distributed
from airnet_cli.core.gallery import open_gallery, read_gallery
from airnet_cli.core.gallery.storage import DiskFolder
from airnet_cli.errors import AirnetError, CheckpointError, DataError, OutputError, UsageError
from airnet_cli.workflows import embed_milvus, embed_parts, on_ray
from airnet_cli.workflows.collection import compact_gallery, count_rows, delete_rows
from airnet_cli.workflows.embed import embed
from airnet_cli.workflows.embed_parts import Computed, EmbedOptions, Images, PartWorker
from airnet_cli.workflows.embedded import EmbeddedGallery
from airnet_cli.workflows.embedder import Embedder
from airnet_cli.workflows.runs import find_model

IMAGES = 7


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped job computes at most two images again."""
    monkeypatch.setattr(embed_parts, "PART_IMAGES", 2)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with crops in `crops/` and a table of them."""
    monkeypatch.chdir(tmp_path)
    Path("crops").mkdir()
    lines = ["path,person_id,camera_id\n"]
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"crops/{number}.png")
        lines.append(f"crops/{number}.png,{number % 2},{number}\n")
    Path("shop.csv").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's storage in memory, emptied."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def options(run: Path | None, *inputs: str, **settings: Any) -> EmbedOptions:
    usual = {"output": Path("gallery.npy"), "batch_size": 2, "device": "cpu"}
    usual |= {"data_root": Path("data"), "runs_root": Path("runs"), "model": run}
    return EmbedOptions(**{"inputs": inputs, **usual, **settings})


def run_embed(
    run: Path | None, *inputs: str, notes: list[str] | None = None, stop: int = -1, **settings: Any
) -> EmbeddedGallery:
    """Embed; Ctrl-C after `stop` images."""

    def progress(stage: str, done: int, total: int | None, unit: str) -> None:
        if done == stop:
            raise KeyboardInterrupt

    noted = [].append if notes is None else notes.append
    return embed(options(run, *inputs, **settings), noted=noted, progress=progress)


def contents(path: Path) -> list[bytes]:
    return [path.with_suffix(suffix).read_bytes() for suffix in (".npy", ".csv", ".json")]


def test_a_file(shop: Path, untrained_run: Path) -> None:
    """Each row is the embedding of its image; table and record are complete; nothing is left."""
    embedded = run_embed(untrained_run, "shop.csv", output=Path("out/deep/g.npy"))
    gallery = read_gallery(Path("out/deep/g.npy"))
    assert gallery.columns["path"][0] == "../../crops/0.png"
    assert list(gallery.columns["camera_id"]) == [str(number) for number in range(IMAGES)]
    embedder = Embedder.load(untrained_run, device="cpu")
    for row in range(IMAGES):
        expected = embedder(gallery.image_path(row))[0]
        np.testing.assert_allclose(gallery.embeddings[row], expected, rtol=1e-4, atol=1e-5)
    assert gallery.heads == embedder.heads
    assert gallery.record == embedded.record
    assert gallery.record["fingerprint"] == embedder.fingerprint
    assert sorted(path.name for path in Path("out/deep").iterdir()) == ["g.csv", "g.json", "g.npy"]
    shape = embedded.to_dict()
    assert (shape["rows"], shape["images"], shape["images_before"]) == (IMAGES, IMAGES, 0)
    seconds = dict(shape["seconds"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    json.dumps(shape)


def test_settings_reach_the_file(shop: Path, untrained_run: Path) -> None:
    """Heads, flip and dtype are those of the file, and in its record."""
    run_embed(untrained_run, "crops", heads=("I", "A1"), flip=True, dtype="float16")
    gallery = read_gallery(Path("gallery.npy"))
    assert gallery.embeddings.dtype == np.float16
    assert gallery.heads == {"A1": slice(0, 512), "I": slice(512, 1024)}
    embedder = Embedder.load(untrained_run, device="cpu", heads=["A1", "I"], flip=True)
    expected = embedder([gallery.image_path(row) for row in range(IMAGES)])
    np.testing.assert_allclose(gallery.embeddings, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images(shop: Path, untrained_run: Path, workers: int) -> None:
    """An error keeps the parts before; skipped, rows and table stay in step without them."""
    Path("crops/1.png").write_bytes(b"")
    Path("crops/4.png").unlink()
    with pytest.raises(DataError, match=r"image 'crops/1\.png' can't be read: empty file; replace"):
        run_embed(untrained_run, "crops")
    settings = {"on_bad_image": "skip", "workers": workers}
    embedded = run_embed(untrained_run, "shop.csv", **settings)
    gallery = read_gallery(Path("gallery.npy"))
    assert list(gallery.columns["camera_id"]) == ["0", "2", "3", "5", "6"]
    expected = Embedder.load(untrained_run, device="cpu")(["crops/5.png"])[0]
    np.testing.assert_allclose(gallery.embeddings[3], expected, rtol=1e-4, atol=1e-5)
    assert list(embedded.skipped) == [
        {"path": "crops/1.png", "reason": "empty file"},
        {"path": "crops/4.png", "reason": "no such file; was its folder moved?"},
    ]
    for path in Path("crops").iterdir():
        path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="none of 6 images could be read"):
        run_embed(untrained_run, "crops", on_bad_image="skip")


@pytest.mark.parametrize("place", ["gallery.npy", "people"])
def test_a_stopped_job_is_resumed_at_the_part(shop: Path, untrained_run: Path, place: str) -> None:
    """Parts that were finished are not computed again, and the bytes are the same."""
    settings = {"output": Path(place), "append": place == "people"}
    run_embed(untrained_run, "shop.csv", output=Path("undisturbed.npy"))
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_embed(untrained_run, "shop.csv", stop=4, notes=notes, **settings)
    assert notes == ["4 images are done; resume with the same command and --resume"]
    resumed = run_embed(untrained_run, "shop.csv", resume=True, notes=notes, **settings)
    assert notes[1] == "resuming after 4 of 7 images"
    assert (resumed.images_before, resumed.images) == (4, 3)
    (matrix,) = Path().glob("people/*.npy") if place == "people" else [Path(place)]
    assert matrix.read_bytes() == Path("undisturbed.npy").read_bytes()
    assert not [path for path in shop.rglob("*") if path.name.endswith(".parts")]
    if place == "gallery.npy":
        assert contents(Path(place)) == contents(Path("undisturbed.npy"))
        with pytest.raises(DataError, match="is complete; to write it again, leave --resume out"):
            run_embed(untrained_run, "shop.csv", resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": True}, r"rows of another flip \(false, not true\)"),
        ({"heads": ("A1",)}, "rows of another heads"),
        ({"precision": "bf16"}, "rows of another precision"),
        ({"inputs": ("crops", "more.png")}, "started with other images or parts"),
    ],
)
def test_another_job_is_not_resumed(
    shop: Path, untrained_run: Path, settings: dict[str, Any], message: str
) -> None:
    """Other settings or images would give a gallery of two kinds of rows."""
    Image.new("RGB", (20, 40)).save("more.png")
    with pytest.raises(KeyboardInterrupt):
        run_embed(untrained_run, "crops", stop=4)
    with pytest.raises(DataError, match=message):
        embed(options(untrained_run, **{"inputs": ("crops",), "resume": True, **settings}))
    notes: list[str] = []
    run_embed(untrained_run, "crops", notes=notes)
    assert notes == ["starting again: the parts of a stopped job are computed again (no --resume)"]


def test_a_folder_that_grows_and_shrinks(shop: Path, untrained_run: Path) -> None:
    """Rows are added, replaced, deleted and compacted; each row stays that of its image."""
    people = {"output": Path("people"), "append": True}
    first = run_embed(untrained_run, "shop.csv", **people)
    assert (first.record["rows"], first.details) == (7, {"part": "000001", "replaced": 0})
    Image.new("RGB", (20, 40), "teal").save("crops/2.png")
    Path("crops/3.png").write_bytes(b"")
    images = ("crops/2.png", "crops/3.png")
    again = run_embed(untrained_run, *images, on_bad_image="skip", **people)
    assert (again.record["rows"], again.details["replaced"]) == (7, 1), "a bad image keeps its row"
    with pytest.raises(DataError, match=r"'people' has rows of another flip \(false, not true\)"):
        run_embed(untrained_run, "crops/0.png", flip=True, **people)
    left = delete_rows("people", images=[Path("crops/0.png"), Path("never.png")], where=())
    assert (left.rows, left.chosen) == (6, 1)
    assert delete_rows("people", images=(), where=["camera_id=1"]).rows == 5
    with pytest.raises(DataError, match="'people' has no row of these images"):
        delete_rows("people", images=[Path("crops/0.png")], where=())
    done = compact_gallery("people")
    assert (done.rows, done.parts, done.deleted) == (5, 2, 3)
    gallery = open_gallery(Path("people"))
    assert [path[-5] for path in gallery.columns["path"]] == ["3", "4", "5", "6", "2"]
    expected = Embedder.load(untrained_run, device="cpu")(["crops/2.png"])[0]
    np.testing.assert_allclose(gallery.embeddings[-1], expected, rtol=1e-4, atol=1e-5)
    counted = count_rows("people", where=["camera_id>3"]).to_dict("chosen")
    assert (counted["rows"], counted["chosen"]) == (5, 3)
    assert delete_rows("people", images=(), where=["path!=x"]).rows == 0
    assert count_rows("people", where=()).rows == 0


def shards(shop: Path, run: Path, output: str = "people", **settings: Any) -> EmbeddedGallery:
    return run_embed(run, "shop.csv", **{"output": output, "shard_size": 3, **settings})


def test_shards(shop: Path, untrained_run: Path) -> None:
    """The rows are those of one file; what exists is not computed again."""
    run_embed(untrained_run, "shop.csv", output=Path("one.npy"))
    with pytest.raises(KeyboardInterrupt):
        shards(shop, untrained_run, stop=5)
    with pytest.raises(DataError, match=r"2 parts are missing \(2, 3\)"):
        open_gallery(Path("people"))
    done = shards(shop, untrained_run)
    assert done.shards == {"total": 3, "size": 3, "done": 2, "there": 1, "missing": 0}
    assert (done.record["rows"], done.images) == (7, 4)
    gallery, one = open_gallery(Path("people")), read_gallery(Path("one.npy"))
    np.testing.assert_allclose(gallery.embeddings[:], one.embeddings, rtol=1e-4, atol=1e-5)
    assert list(gallery.columns["camera_id"]) == list(one.columns["camera_id"])
    assert gallery.image_path(5) == Path("crops/5.png")
    assert len(list(Path("people").iterdir())) == 9
    stamps = {path: path.stat().st_mtime_ns for path in Path("people").iterdir()}
    assert shards(shop, untrained_run).images == 0
    assert {path: path.stat().st_mtime_ns for path in Path("people").iterdir()} == stamps


def test_processes_of_torchrun_take_turns(
    shop: Path, untrained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each computes every n-th part, also one of which no image can be read."""
    for number in (3, 4, 5):
        Path(f"crops/{number}.png").write_bytes(b"<html>")
    monkeypatch.setattr(distributed.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    states = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        done = shards(shop, untrained_run, on_bad_image="skip")
        states.append((done.shards["done"], done.shards["missing"], done.record["rows"]))
    assert states == [(1, 2, None), (2, 0, 4)]
    columns = open_gallery(Path("people")).columns
    assert list(columns["camera_id"]) == ["0", "1", "2", "6"]


def test_two_processes_that_compute_one_part(shop: Path, untrained_run: Path) -> None:
    """The second one finds out when it publishes, and removes its files."""
    model = find_model(untrained_run, Path("runs"))
    asked = options(untrained_run, "shop.csv", output="people", shard_size=3)
    images, folder = Images.of(asked, "people"), DiskFolder("people")
    first, second = (PartWorker(asked, model, folder, images, 3) for _ in range(2))
    states = []

    def meanwhile(stage: str, done: int, total: int | None, unit: str) -> None:
        if done == 2:
            states.extend(each.is_ours for each in second.compute([1], lambda *_: None))

    states.extend(each.is_ours for each in first.compute([1], meanwhile))
    assert states == [True, False]
    assert len(list(Path("people").iterdir())) == 3


def test_a_process_of_ray(shop: Path, untrained_run: Path, monkeypatch: Any) -> None:
    """It computes a part in another folder; errors and parts of others are told, not raised."""
    model = find_model(untrained_run, Path("runs"))
    asked = options(untrained_run, "shop.csv", output="people", shard_size=3)
    process = on_ray._Process(on_ray._anywhere(asked, model))
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for is_ours in (True, False):
        row = process({"number": 2})
        computed = Computed(**json.loads(row["computed"]))
        assert (computed.number, computed.is_ours, row["wrong"]) == (2, is_ours, "")
    (shop / "crops" / "0.png").write_bytes(b"")
    assert "crops/0.png' can't be read: empty file" in process({"number": 1})["wrong"]
    monkeypatch.chdir(shop)
    assert shards(shop, untrained_run, on_bad_image="skip").shards["done"] == 2


def test_a_collection(shop: Path, untrained_run: Path, monkeypatch: Any) -> None:
    """Rows are keyed by absolute paths; --resume leaves out images that have not changed."""
    rows: dict[str, dict[str, Any]] = {}

    class Collection:
        def __init__(self, record: dict[str, Any]) -> None:
            self.record = record

        def stamps(self, keys: list[str]) -> dict[str, str]:
            return {key: rows[key]["file"] for key in keys if key in rows}

        def append(self, new: list[dict[str, Any]]) -> None:
            rows.update({row["path"]: row for row in new})

        def count(self) -> int:
            return len(rows)

    def connect(place: object, *, token: str, record: dict[str, Any]) -> Collection:
        return Collection(record)

    monkeypatch.setattr(embed_milvus, "open_collection", connect)
    place = {"output": "milvus://localhost:1/people", "on_bad_image": "skip"}
    Path("crops/6.png").write_bytes(b"")
    done = run_embed(untrained_run, "shop.csv", **place)
    assert (done.to_dict()["rows"], len(done.skipped), done.record["columns"]) == (
        6,
        1,
        ["person_id", "camera_id"],
    )
    row = rows[str(shop / "crops/3.png")]
    assert row["columns"] == {"person_id": "1", "camera_id": "3"}
    expected = Embedder.load(untrained_run, device="cpu")(["crops/3.png"])[0]
    np.testing.assert_allclose(row["embedding"], expected, rtol=1e-4, atol=1e-5)
    Image.new("RGB", (20, 40), "teal").save("crops/3.png")
    Image.new("RGB", (20, 40), "teal").save("crops/6.png")
    again = run_embed(untrained_run, "shop.csv", resume=True, **place)
    assert (again.images, again.images_before, len(rows)) == (2, 5, 7)


def test_object_storage(shop: Path, untrained_run: Path, bucket: fsspec.AbstractFileSystem) -> None:
    """In and out: the rows of the folder, and the images' URLs in the table."""
    bucket.put(f"{shop}/crops", "/bucket/crops", recursive=True)
    settings: dict[str, Any] = {"output": "memory://bucket/people", "shard_size": 3}
    assert run_embed(untrained_run, "memory://bucket/crops", **settings).record["rows"] == 7
    assert run_embed(untrained_run, "memory://bucket/crops", **settings).images == 0
    bucket.get("/bucket/people", str(shop / "fetched"), recursive=True)
    run_embed(untrained_run, "crops", output="people", shard_size=3)
    fetched, local = open_gallery(Path("fetched")), open_gallery(Path("people"))
    assert np.array_equal(fetched.embeddings[:], local.embeddings[:])
    assert fetched.image_name(3) == "memory://bucket/crops/3.png"
    with pytest.raises(DataError, match="no images at 'memory://nothing'"):
        run_embed(untrained_run, "memory://nothing", **settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"output": Path("gallery")}, UsageError, "must end in .npy, as in -o gallery.npy"),
        ({"inputs": ("nowhere",)}, DataError, "'nowhere' does not exist"),
        ({"model": Path("runs/none")}, CheckpointError, "'runs/none' does not exist"),
        ({"model": None}, CheckpointError, "no finished run under 'runs'; train one"),
        ({"heads": ("Q",)}, UsageError, "head Q: this network has A1, A2, I"),
        ({"output": Path("shop.csv/g.npy")}, OutputError, "can't write 'shop.csv/g.npy'"),
        ({"data_name": "x", "split": "query", "inputs": ()}, DataError, "no data set 'x' under"),
        ({"output": "x.npy", "append": True}, UsageError, "'x.npy' is a file; give a folder"),
        ({"output": "shop.csv", "append": True}, UsageError, "'shop.csv' is a file"),
        ({"output": "old", "append": True}, DataError, "earlier version of airnet"),
        ({"output": "old", "shard_size": 2}, DataError, "earlier version of airnet"),
        ({"output": "s3://a/b"}, UsageError, "'s3://a/b' is in object storage"),
        ({"output": "x.npy", "shard_size": 2}, UsageError, "the output is a folder, not the file"),
        ({"output": "x", "shard_size": 2, "append": True}, UsageError, "leave --append out"),
        ({"inputs": ("crops", "s3://a/b"), "shard_size": 2, "output": "x"}, UsageError, "two fol"),
        ({"engine": "ray"}, UsageError, "--engine ray computes shards; add --shard-size"),
        ({"output": "milvus://h:1/x", "dtype": "float16"}, UsageError, "Milvus stores float32"),
    ],
)
def test_what_can_not_be_done(
    shop: Path,
    untrained_run: Path,
    settings: dict[str, Any],
    error: type[AirnetError],
    message: str,
) -> None:
    """One line, and no files."""
    Path("old").mkdir()
    Path("old/gallery.json").write_text("{}")
    before = sorted(shop.rglob("*"))
    with pytest.raises(error, match=message) as raised:
        embed(options(untrained_run, **{"inputs": ("crops",), **settings}))
    assert "\n" not in str(raised.value)
    assert sorted(shop.rglob("*")) == before


def test_a_gallery_behind_a_link(shop: Path, untrained_run: Path) -> None:
    """Image paths are those of the gallery's real folder, for files, folders and links to both."""
    run_embed(untrained_run, "crops", output=Path("a/b/g.npy"))
    run_embed(untrained_run, "crops", output=Path("a/b/people"), append=True)
    Path("link").symlink_to("a/b")
    Path("link.npy").symlink_to("a/b/g.npy")
    Path("people").symlink_to("a/b/people")
    for place in ("link/g.npy", "link.npy", "people", "link/people"):
        image = open_gallery(Path(place)).image_path(1)
        assert image.is_file(), place
        assert image.samefile("crops/1.png"), place

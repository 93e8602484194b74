"""Embedding in shards: the bytes hang on the plan alone; what is there is never done again."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from airnet_cli.core.progress import silent
from airnet_cli.core.segments import read_segments
from airnet_cli.core.storage import ObjectFolder
from airnet_cli.errors import AirnetError, DataError, UsageError
from airnet_cli.workflows.embed import embed
from airnet_cli.workflows.embed_shards import ShardedGallery, embed_shards
from airnet_cli.workflows.runs import Model
from airnet_cli.workflows.shard_worker import ShardJob, ShardWorker

IMAGES = 11
SIZE = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The plan says how many; sums hang on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_crops(folder: Path) -> None:
    folder.mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with crops in `crops/`."""
    monkeypatch.chdir(tmp_path)
    draw_crops(tmp_path / "crops")
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(
    untrained_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], Model]:
    """What one process makes of the crops in one go, with one thread; and the model."""
    folder = tmp_path_factory.mktemp("undisturbed")
    draw_crops(folder / "crops")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    done = run_shards(untrained_run, str(folder / "crops"), output=str(folder / "people"))
    torch.set_num_threads(before)
    return contents(folder / "people"), done.model


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's storage in memory, with the crops below `/bucket/crops`."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def job_for(run: Path, *inputs: str, **settings: Any) -> ShardJob:
    return ShardJob(
        **{
            "inputs": inputs,
            "data_name": None,
            "split": None,
            "data_root": Path("data"),
            "output": "people",
            "model": run,
            "runs_root": Path("runs"),
            "shard_size": SIZE,
            "dtype": "float32",
            "heads": None,
            "flip": False,
            "batch_size": 2,
            "workers": 0,
            "device": "cpu",
            "precision": "fp32",
            "runtime": "torch",
            "exported": None,
            "on_bad_image": "error",
            **settings,
        }
    )


def run_shards(
    run: Path,
    *inputs: str,
    progress: Any = silent,
    noted: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> ShardedGallery:
    return embed_shards(
        job_for(run, *inputs, **settings),
        engine="local",
        on_model=lambda _: None,
        noted=noted,
        progress=progress,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(shards: int) -> list[str]:
    each = [f"shard-{n:05}-of-{shards:05}" for n in range(shards)]
    files = [f"{name}{suffix}" for name in each for suffix in (".npy", ".csv", ".json")]
    return sorted(["gallery.json", "shards.json", *files])


def stop_after(images: int) -> Any:
    """A progress callback that presses Ctrl-C."""

    def progress(stage: str, done: int, total: int | None, unit: str) -> None:
        assert total == IMAGES
        if done == images:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    "settings",
    [{}, {"dtype": "float16", "heads": ("A1", "I"), "flip": True, "batch_size": 3}],
    ids=["usual", "others"],
)
def test_shards_are_the_galleries_of_their_lists(
    shop: Path, untrained_run: Path, settings: dict[str, Any]
) -> None:
    """Byte for byte what `embed` makes of each part of the list; together they are one gallery."""
    done = run_shards(untrained_run, "crops", **settings)
    assert (done.done, done.missing, done.rows, done.images) == (3, 0, IMAGES, IMAGES)
    assert sorted(path.name for path in Path("people").iterdir()) == names(3)
    for number, first in enumerate(range(0, IMAGES, SIZE)):
        listed = [f"crops/{n:02}.png\n" for n in range(first, min(first + SIZE, IMAGES))]
        Path("list.txt").write_text("".join(listed))
        single = embed(
            inputs=[Path("list.txt")],
            data_name=None,
            split=None,
            data_root=Path("data"),
            output=Path("single/gallery.npy"),
            model=untrained_run,
            runs_root=Path("runs"),
            **{"dtype": "float32", "heads": None, "flip": False, "batch_size": 2, **settings},
            workers=0,
            device="cpu",
            precision="fp32",
            on_bad_image="error",
            resume=False,
            on_model=lambda _: None,
            noted=lambda _: None,
        )
        shard = Path("people") / f"shard-{number:05}-of-00003.npy"
        for suffix in (".npy", ".csv"):
            expected = single.path.with_suffix(suffix).read_bytes()
            assert shard.with_suffix(suffix).read_bytes() == expected
        record = json.loads(shard.with_suffix(".json").read_text())
        differs = {key for key in record if record[key] != single.record.get(key)}
        assert differs == {"shard"}
    whole = read_segments(Path("people"))
    expected_paths = [f"../crops/{number:02}.png" for number in range(IMAGES)]
    assert list(whole.columns["path"]) == expected_paths
    assert whole.image_path(7) == Path("crops/07.png")


def test_what_is_there_is_not_done_again(shop: Path, untrained_run: Path) -> None:
    """No file is touched; one shard that is missing is computed, to the same bytes."""
    run_shards(untrained_run, "crops")
    before = contents(Path("people"))
    stamps = {path: path.stat().st_mtime_ns for path in Path("people").iterdir()}
    again = run_shards(untrained_run, "crops")
    assert (again.done, again.images, again.rows) == (0, 0, IMAGES)
    assert {path: path.stat().st_mtime_ns for path in Path("people").iterdir()} == stamps
    for gone in Path("people").glob("shard-00001*"):
        gone.unlink()
    again = run_shards(untrained_run, "crops")
    assert (again.done, again.images, again.rows) == (1, SIZE, IMAGES)
    assert contents(Path("people")) == before


@pytest.mark.parametrize("images", [4, 6], ids=["before its end", "in the second"])
def test_a_stopped_one_goes_on(
    shop: Path, untrained_run: Path, undisturbed: Any, images: int
) -> None:
    """Ctrl-C at a batch: the shard in work goes on there; the bytes are the same."""
    with pytest.raises(KeyboardInterrupt):
        run_shards(untrained_run, "crops", progress=stop_after(images))
    assert not Path("people/gallery.json").exists()
    done = run_shards(untrained_run, "crops")
    assert sum(each.images_before for each in done.computed) == (images - 1) % SIZE + 1
    assert done.images == IMAGES - images
    assert contents(Path("people")) == undisturbed[0]


def test_a_stopped_shard_whose_images_changed_begins_again(shop: Path, untrained_run: Path) -> None:
    """It was no shard yet: it becomes that of the images that are there now."""
    with pytest.raises(KeyboardInterrupt):
        run_shards(untrained_run, "crops", progress=stop_after(6))
    Image.new("RGB", (20, 40), "teal").save("crops/04.png")
    done = run_shards(untrained_run, "crops")
    assert done.images == IMAGES - SIZE
    run_shards(untrained_run, "crops", output="undisturbed")
    assert contents(Path("people")) == contents(Path("undisturbed"))


def test_many_workers_share_out_the_shards(
    shop: Path, untrained_run: Path, undisturbed: Any
) -> None:
    """As torchrun's: each its turn, from another folder too; the last one makes the whole."""
    job = job_for(untrained_run, "crops")
    expected, found = undisturbed
    for member in (1, 0):
        worker = ShardWorker(job.anywhere(found), found)
        for number in range(member, worker.plan.shards, 2):
            assert worker.compute(number).state == "done"
            assert worker.compute(number).state == "there"
    assert run_shards(untrained_run, "crops").done == 0
    assert contents(Path("people")) == expected


def test_two_workers_at_one_shard(
    shop: Path, untrained_run: Path, undisturbed: Any, monkeypatch: Any
) -> None:
    """On one machine the second leaves it to the first; of two machines one comes second."""
    job = job_for(untrained_run, "crops")
    expected, found = undisturbed
    first, second = ShardWorker(job, found), ShardWorker(job, found)
    states: list[str] = []

    def meanwhile(stage: str, done: int, total: int | None, unit: str) -> None:
        if done == 2 and len(states) == 0:
            states.append(second.compute(1).state)
            monkeypatch.setattr(socket, "gethostname", lambda: "another machine")
            states.append(second.compute(1).state)
            for left in Path("people").glob(".shard-*"):  # as whoever finds all shards there does
                shutil.rmtree(left)

    assert first.compute(1, meanwhile).state == "there"
    assert states == ["elsewhere", "done"]
    run_shards(untrained_run, "crops")
    assert contents(Path("people")) == expected


def test_the_plan_says_how_many_threads(shop: Path, untrained_run: Path, undisturbed: Any) -> None:
    """Whoever joins computes with as many: another number gives other last digits."""
    with pytest.raises(KeyboardInterrupt):
        run_shards(untrained_run, "crops", progress=stop_after(4))
    torch.set_num_threads(2)
    run_shards(untrained_run, "crops")
    assert torch.get_num_threads() == 1
    assert contents(Path("people")) == undisturbed[0]


def test_bad_images(shop: Path, untrained_run: Path) -> None:
    """An error keeps what is done; skipped, a shard may have no row, and the whole is without."""
    for number in (5, 8, 9, 10):
        Path(f"crops/{number:02}.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"image 'crops/05\.png' can't be read: not an image"):
        run_shards(untrained_run, "crops")
    done = run_shards(untrained_run, "crops", on_bad_image="skip")
    assert (done.done, done.rows, done.images_skipped) == (2, 7, 4)
    skipped = [f"../crops/{number:02}.png" for number in (5, 8, 9, 10)]
    assert [image["path"] for image in done.skipped] == skipped
    assert np.load("people/shard-00002-of-00003.npy").shape == (0, 1536)
    assert len(read_segments(Path("people")).embeddings) == 7
    assert run_shards(untrained_run, "crops").rows == 7
    for path in Path("crops").iterdir():
        path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="none of 11 images could be read"):
        run_shards(untrained_run, "crops", output="none", on_bad_image="skip")


REFUSED: list[tuple[dict[str, Any], type[AirnetError], str]] = [
    ({"flip": True}, DataError, "begun with other flip: its shards.json has false, this"),
    ({"heads": ("A1",)}, DataError, "begun with other heads"),
    ({"dtype": "float16"}, DataError, "begun with other dtype"),
    ({"batch_size": 3}, DataError, "begun with other batch size"),
    ({"shard_size": 3}, DataError, "begun with other images per shard"),
    ({"inputs": ("crops/01.png",)}, DataError, "begun with other number of images"),
    ({"inputs": ("list.txt",)}, DataError, "begun with other images: "),
    ({"output": "people.npy"}, UsageError, r"not the file 'people\.npy'; give one"),
    ({"inputs": ("crops", "s3://a/b")}, UsageError, "some images are in object storage"),
    ({"output": "crops/00.png"}, UsageError, "the output is a folder, not the file"),
    ({"output": "list.txt/people"}, DataError, "'list.txt/people/shards.json' can't be read"),
    ({"inputs": ("none",)}, DataError, "'none' does not exist"),
    ({"inputs": ("memory://none",)}, DataError, "there are no images at 'memory://none'"),
]


def test_what_can_not_be_done(shop: Path, untrained_run: Path) -> None:
    """One line, and no file is touched: not in a folder that was begun with another job."""
    with pytest.raises(KeyboardInterrupt):
        run_shards(untrained_run, "crops", progress=stop_after(4))
    Image.new("RGB", (20, 40)).save("other.png")
    lines = [*(f"crops/{n:02}.png" for n in range(IMAGES - 1)), "other.png"]
    Path("list.txt").write_text("\n".join(lines))
    before = {path: path.stat().st_mtime_ns for path in shop.rglob("*")}
    for settings, error, message in REFUSED:
        with pytest.raises(error, match=message) as raised:
            run_shards(untrained_run, **{"inputs": ("crops",), **settings})
        assert "\n" not in str(raised.value)
        assert {path: path.stat().st_mtime_ns for path in shop.rglob("*")} == before, settings


def test_a_damaged_shard_is_named(shop: Path, untrained_run: Path) -> None:
    """It is not silently done again; as the message says, it can be."""
    run_shards(untrained_run, "crops")
    before = contents(Path("people"))
    shard = Path("people/shard-00001-of-00003.npy")
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(DataError, match="is missing or cut off; remove shard-00001-of"):
        run_shards(untrained_run, "crops")
    shard.with_suffix(".json").unlink()
    run_shards(untrained_run, "crops")
    assert contents(Path("people")) == before


def test_object_storage(
    shop: Path, untrained_run: Path, bucket: fsspec.AbstractFileSystem, undisturbed: Any
) -> None:
    """In and out: the same rows, the images' URLs in the tables, and one gallery when fetched."""
    bucket.put(f"{shop}/crops", "/bucket/crops", recursive=True)
    run_shards(untrained_run, "memory://bucket/crops", output="disk")
    done = run_shards(untrained_run, "memory://bucket/crops", output="memory://bucket/people")
    assert (done.done, done.rows) == (3, IMAGES)
    again = run_shards(untrained_run, "memory://bucket/crops", output="memory://bucket/people")
    assert (again.done, again.rows) == (0, IMAGES)
    fetched = {path.rpartition("/")[2]: bucket.cat(path) for path in bucket.ls("/bucket/people", 0)}
    assert sorted(fetched) == names(3)
    assert fetched == contents(Path("disk"))
    for name in names(3):
        if name.endswith(".npy"):
            assert fetched[name] == undisturbed[0][name]
    whole = read_segments(Path("disk"))
    assert whole.image_name(3) == "memory://bucket/crops/03.png"
    run_shards(untrained_run, "crops", output="memory://bucket/other")
    table = bucket.cat("/bucket/other/shard-00000-of-00003.csv").decode().splitlines()
    assert table[1] == f"{shop.resolve()}/crops/00.png"


def test_a_lost_upload_race(
    shop: Path, untrained_run: Path, bucket: fsspec.AbstractFileSystem, monkeypatch: Any
) -> None:
    """Another process has put the record there when ours comes: theirs counts."""
    run_shards(untrained_run, "crops", output="memory://bucket/people")
    before = {path: bucket.cat(path) for path in bucket.ls("/bucket/people", False)}
    record = "/bucket/people/shard-00001-of-00003.json"
    bucket.rm(record)
    create = ObjectFolder.create

    def create_after_another(self: ObjectFolder, name: str, content: bytes) -> bool:
        if name in record:
            bucket.pipe(record, before[record])
        return create(self, name, content)

    monkeypatch.setattr(ObjectFolder, "create", create_after_another)
    done = run_shards(untrained_run, "crops", output="memory://bucket/people")
    assert (done.done, [each.state for each in done.computed]) == (0, ["there"] * 3)
    assert {path: bucket.cat(path) for path in bucket.ls("/bucket/people", False)} == before


def test_an_image_in_storage_that_is_broken(
    untrained_run: Path, bucket: fsspec.AbstractFileSystem
) -> None:
    """It is named by its URL, not by a temporary file."""
    bucket.pipe("/bucket/crops/1.png", b"<html>")
    with pytest.raises(DataError, match=r"image 'memory://bucket/crops/1\.png' can't be read: not"):
        run_shards(untrained_run, "memory://bucket/crops", output="memory://bucket/people")


def test_json_shape(shop: Path, untrained_run: Path) -> None:
    """Version 1: programs read it."""
    with pytest.raises(KeyboardInterrupt):
        run_shards(untrained_run, "crops", progress=stop_after(6))
    shape = run_shards(untrained_run, "crops").to_dict()
    assert shape["shards"] == {"total": 3, "size": 4, "done": 2, "there": 1, "missing": 0}
    assert (shape["gallery"], shape["rows"], shape["images"]) == ("people", 11, 5)
    assert (shape["images_before"], shape["skipped"], shape["device"]) == (2, [], "cpu")
    assert set(shape["seconds"]) == {"total", "reading", "network", "writing"}
    assert json.loads(json.dumps(shape))["version"] == 1
    assert re.fullmatch("[0-9a-f]{64}", shape["fingerprint"])

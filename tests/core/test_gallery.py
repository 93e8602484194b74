"""The gallery on disk: plain NumPy, whole or not there, and the same however often it stopped."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airnet_cli.core import gallery as module
from airnet_cli.core.gallery import GalleryWriter, Listing, images_of_stopped_job, read_gallery
from airnet_cli.errors import DataError

IMAGES, DIMENSIONS, BATCH = 10, 6, 3
PATHS = tuple(f"crops/{number}.jpg" for number in range(IMAGES))
LISTING = Listing(PATHS, {"person_id": tuple("0123456789"), "note": ('a, "b"', *"bcdefghij")})
EMBEDDINGS = np.random.default_rng(7).normal(size=(IMAGES, DIMENSIONS)).astype(np.float32)
BAD = {4: "empty file"}
RECORD = {
    "fingerprint": "ab" * 32,
    "heads": {"A1": [0, 4], "I": [4, 6]},
    "normalize_heads": False,
    "flip": True,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the listing names (only their sizes and times count)."""
    (tmp_path / "crops").mkdir()
    for path in PATHS:
        (tmp_path / path).write_bytes(b"x")
    return tmp_path


def write(
    path: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    bad: dict[int, str] = BAD,
    listing: Listing = LISTING,
    dtype: Any = "float32",
    embeddings: np.ndarray = EMBEDDINGS,
    **settings: object,
) -> None:
    """Write the gallery in batches; interrupt it after the batch that begins at `stop_after`."""
    with GalleryWriter(
        path,
        listing,
        dimensions=DIMENSIONS,
        dtype=dtype,
        settings={"model": "ab" * 32, "batch size": BATCH, **settings},
        resume=resume,
    ) as writer:
        for first in range(writer.done, len(listing.paths), BATCH):
            batch = range(first, min(first + BATCH, len(listing.paths)))
            good = [index for index in batch if index not in bad]
            writer.append(good, embeddings[good], [(i, bad[i]) for i in batch if i in bad])
            if first == stop_after:
                raise KeyboardInterrupt
        writer.finish(RECORD)


def contents(path: Path) -> list[bytes]:
    return [path.with_suffix(suffix).read_bytes() for suffix in (".npy", ".csv", ".json")]


@pytest.fixture
def undisturbed(folder: Path) -> Path:
    write(folder / "undisturbed.npy")
    return folder / "undisturbed.npy"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(folder: Path, dtype: str) -> None:
    """Rows, table and heads are in step; a bad image has neither row nor line, and is listed."""
    write(folder / "g.npy", dtype=dtype)
    gallery = read_gallery(folder / "g.npy")
    good = [index for index in range(IMAGES) if index not in BAD]
    assert np.array_equal(gallery.embeddings, EMBEDDINGS[good].astype(dtype))
    assert gallery.columns == {
        "path": tuple(PATHS[index] for index in good),
        **{name: tuple(cells[index] for index in good) for name, cells in LISTING.columns.items()},
    }
    assert gallery.heads == {"A1": slice(0, 4), "I": slice(4, 6)}
    assert (gallery.fingerprint, gallery.flip, gallery.normalize_heads) == ("ab" * 32, True, False)
    assert gallery.record["skipped"] == [{"path": PATHS[4], "reason": "empty file"}]
    assert gallery.image_path(4) == folder / PATHS[5]


def test_the_file_is_plain_numpy(folder: Path) -> None:
    """Byte for byte what `numpy.save` writes; mapped and read-only when it is read back."""
    write(folder / "g.npy")
    np.save(folder / "plain.npy", np.delete(EMBEDDINGS, 4, axis=0))
    assert (folder / "g.npy").read_bytes() == (folder / "plain.npy").read_bytes()
    embeddings = read_gallery(folder / "g.npy").embeddings
    assert isinstance(embeddings, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        embeddings[0, 0] = 1


def test_table_is_plain_csv(undisturbed: Path) -> None:
    """UTF-8, plain line ends, quotes only where they are needed."""
    lines = undisturbed.with_suffix(".csv").read_bytes().split(b"\n")
    assert lines[:2] == [b"path,person_id,note", b'crops/0.jpg,0,"a, ""b"""']
    assert lines[-1] == b""


@pytest.mark.parametrize("stop_after", [0, 3, 6, 9])
def test_resumed_is_the_same_to_the_byte(folder: Path, undisturbed: Path, stop_after: int) -> None:
    """Stopped after any batch and gone on with: three files equal to those of one session."""
    path = folder / "stopped.npy"
    with pytest.raises(KeyboardInterrupt):
        write(path, stop_after=stop_after)
    assert not path.exists()
    assert images_of_stopped_job(path) == min(stop_after + BATCH, IMAGES)
    write(path, resume=True)
    assert contents(path) == contents(undisturbed)
    assert [file for file in folder.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("step", ["_cut", "_write_table", "json"])
def test_stopped_while_finishing(
    folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Between the renames there is no gallery rather than a wrong one; and resuming ends it."""
    path = folder / "stopped.npy"
    write(path, embeddings=EMBEDDINGS + 1)  # an older gallery, that must not vouch for the new one
    old = contents(path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "json":
            real = module.write_json
            patch.setattr(
                module,
                "write_json",
                lambda file, value: stop() if file.suffixes == [".json"] else real(file, value),
            )
        else:
            patch.setattr(GalleryWriter, step, stop)
        with pytest.raises(KeyboardInterrupt):
            write(path)
    if step == "json":
        with pytest.raises(DataError, match=r"no stopped\.json beside it"):
            read_gallery(path)
    else:
        assert contents(path) == old
    write(path, resume=True)
    assert contents(path) == contents(undisturbed)


def test_stopped_before_it_was_published(folder: Path, undisturbed: Path) -> None:
    """All files are in place, and the journal still stands: resuming ends it with the same files,
    and asks for nothing to be embedded.
    """
    path = folder / "stopped.npy"
    good = [index for index in range(IMAGES) if index not in BAD]

    def begin(*, resume: bool) -> GalleryWriter:
        settings = {"model": "ab" * 32, "batch size": BATCH}
        return GalleryWriter(
            path, LISTING, dimensions=DIMENSIONS, dtype="float32", settings=settings, resume=resume
        )

    def stop(record: dict[str, Any]) -> None:
        assert record == read_gallery(path).record
        raise KeyboardInterrupt

    with begin(resume=False) as writer:
        writer.append(good, EMBEDDINGS[good], list(BAD.items()))
        with pytest.raises(KeyboardInterrupt):
            writer.finish(RECORD, published=stop)
    with begin(resume=True) as writer:
        assert writer.done == IMAGES
        writer.finish(RECORD)
    assert contents(path) == contents(undisturbed)
    assert [file for file in folder.iterdir() if file.name.startswith(".")] == []


def test_killed_and_resumed(folder: Path, undisturbed: Path) -> None:
    """What SIGKILL leaves behind can be gone on with, from the last sync."""
    program = f"""
import os, signal, sys
import numpy as np
from pathlib import Path
from airnet_cli.core import gallery
gallery.SYNC_SECONDS = 0
paths, columns = {PATHS!r}, {LISTING.columns!r}
rows = np.array({EMBEDDINGS[:BATCH].tolist()!r}, np.float32)
writer = gallery.GalleryWriter(
    Path(sys.argv[1]), gallery.Listing(paths, columns), dimensions={DIMENSIONS}, dtype="float32",
    settings={{"model": {"ab" * 32!r}, "batch size": {BATCH}}}, resume=False,
)
writer.append([0, 1, 2], rows)
gallery.SYNC_SECONDS = 1000
writer.append([3, 5], 0 * rows[:2], [(4, "empty file")])  # not synced: done again
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = folder / "killed.npy"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert images_of_stopped_job(path) == BATCH
    write(path, resume=True)
    assert contents(path) == contents(undisturbed)


def test_without_resume_a_stopped_job_is_started_again(folder: Path, undisturbed: Path) -> None:
    """Nothing of it is left in the new gallery."""
    path = folder / "again.npy"
    with pytest.raises(KeyboardInterrupt):
        write(path, stop_after=3, embeddings=EMBEDDINGS + 1)
    write(path)
    assert contents(path) == contents(undisturbed)


def test_an_old_gallery_stays_until_the_new_one_is_whole(folder: Path, undisturbed: Path) -> None:
    """A command that is stopped leaves the old gallery readable."""
    before = contents(undisturbed)
    with pytest.raises(KeyboardInterrupt):
        write(undisturbed, stop_after=6, embeddings=EMBEDDINGS + 1)
    assert contents(undisturbed) == before
    assert np.array_equal(read_gallery(undisturbed).embeddings[0], EMBEDDINGS[0])


def test_nothing_is_left_of_a_job_that_did_nothing(folder: Path) -> None:
    """A failure before the first batch leaves no files."""
    before = sorted(folder.iterdir())
    broken = EMBEDDINGS.copy()
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match=r"embedding of 'crops/1.jpg' is not finite in float32"):
        write(folder / "g.npy", embeddings=broken)
    assert sorted(folder.iterdir()) == before


def other_images(folder: Path) -> dict[str, Any]:
    return {"listing": Listing(PATHS[:-1], {})}


def other_file(folder: Path) -> dict[str, Any]:
    (folder / PATHS[1]).write_bytes(b"another picture")
    return {}


def part_is_gone(folder: Path) -> dict[str, Any]:
    (folder / ".g.npy.part").unlink()
    return {}


def part_is_cut(folder: Path) -> dict[str, Any]:
    os.truncate(folder / ".g.npy.part", 200)
    return {}


def journal_is_broken(folder: Path) -> dict[str, Any]:
    (folder / ".g.part.json").write_text('{"job": {}')
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"model": "cd" * 32}, "differs in model: it has abababababab, this command cd"),
        (lambda _: {"batch size": 4}, "differs in batch size: it has 3, this command 4; repeat"),
        (lambda _: {"flip": True}, "differs in flip: it has null, this command true"),
        (lambda _: {"dtype": "float16"}, "differs in dtype: it has float32, this command float16"),
        (other_images, "differs in images"),
        (other_file, "of the 6 images .* some were changed since; start again without --resume"),
        (part_is_gone, "part' is gone; start again without --resume"),
        (part_is_cut, "part' is cut off; start again without --resume"),
        (journal_is_broken, "part.json' can't be read; start again without --resume"),
    ],
    ids=["model", "batch", "new", "dtype", "images", "file", "gone", "cut", "journal"],
)
def test_another_job_is_not_gone_on_with(
    folder: Path, change: Callable[[Path], dict[str, Any]], message: str
) -> None:
    """What would give other rows than an undisturbed run is refused, and named."""
    with pytest.raises(KeyboardInterrupt):
        write(folder / "g.npy", stop_after=3)
    with pytest.raises(DataError, match=message) as error:
        write(folder / "g.npy", resume=True, **change(folder))
    assert "\n" not in str(error.value)


def test_resume_with_nothing_to_resume(folder: Path, undisturbed: Path) -> None:
    """A whole gallery is refused; without a job it simply begins."""
    with pytest.raises(DataError, match="is whole; start again without --resume"):
        write(undisturbed, resume=True)
    write(folder / "fresh.npy", resume=True)
    assert contents(folder / "fresh.npy") == contents(undisturbed)


def test_float16_that_overflows_is_refused(folder: Path) -> None:
    """65504 is the largest float16: an infinity would be the best match of everything."""
    with pytest.raises(DataError, match=r"'crops/0.jpg' is not finite in float16; use --dtype"):
        write(folder / "g.npy", dtype="float16", embeddings=EMBEDDINGS * 1e6)


def test_no_image_at_all(folder: Path) -> None:
    """A gallery without rows is an error that gives the first reason."""
    with pytest.raises(DataError, match=r"none of 10 images .* 'crops/0.jpg', not an image"):
        write(folder / "g.npy", bad=dict.fromkeys(range(IMAGES), "not an image"))


def test_a_full_disk_is_told_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the size, and nothing left behind."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    before = sorted(folder.iterdir())
    with pytest.raises(DataError, match="No space left on device; it takes 0 MiB: make room"):
        write(folder / "g.npy")
    assert sorted(folder.iterdir()) == before


def drop(suffix: str) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(suffix).unlink()


def save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path, array, allow_pickle=True)


def edit(**values: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        side = path.with_suffix(".json")
        side.write_text(json.dumps(json.loads(side.read_text()) | values))

    return change


def add_line(path: Path) -> None:
    with path.with_suffix(".csv").open("a") as file:
        file.write("crops/11.jpg,1,x\n")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist; `airnet embed IMAGES -o"),
        (drop(".csv"), "there is no .*csv, the gallery's list of images"),
        (drop(".json"), "has no undisturbed.json beside it, which is written last"),
        (cut, "can't be read as a NumPy array"),
        (save(np.array([{}], dtype=object)), "can't be read as a NumPy array"),
        (save(np.asfortranarray(np.delete(EMBEDDINGS, 4, 0))), "is in Fortran order"),
        (save(EMBEDDINGS[:9, :5]), r"float32 of the shape \(9, 5\); its .json .* \(9, 6\)"),
        (save(EMBEDDINGS), r"holds float32 of the shape \(10, 6\)"),
        (save(np.delete(EMBEDDINGS, 4, 0).astype(np.float64)), "holds float64"),
        (add_line, "has 10 or more rows under its header and the gallery has 9"),
        (edit(format="other"), "does not describe a gallery of airnet"),
        (edit(format_version=2), "has format version 2, this airnet reads 1; update airnet"),
        (edit(heads={"A1": [0, 4]}), "heads that do not fill 6 dimensions"),
        (edit(heads={"A1": "x"}), "heads that do not fill 6 dimensions"),
        (edit(flip=None, rows="9"), "lacks or garbles rows, flip"),
        (edit(dtype="int8"), "lacks or garbles dtype"),
        (lambda path: path.with_suffix(".json").write_text("{"), "can't be read"),
        (lengthen, "its size does not fit its shape"),
        (edit(rows=True), "lacks or garbles rows"),
        (edit(heads={"A1": [0, 4.0], "I": [4, 6]}), "heads that do not fill 6 dimensions"),
    ],
    ids=[
        "npy missing",
        "csv missing",
        "json missing",
        "cut",
        "objects",
        "fortran",
        "width",
        "rows",
        "float64",
        "csv longer",
        "format",
        "version",
        "heads",
        "head",
        "types",
        "dtype",
        "json broken",
        "npy longer",
        "true",
        "half head",
    ],
)
def test_a_broken_gallery_is_refused(
    undisturbed: Path, damage: Callable[[Path], None], message: str
) -> None:
    """One line for each defect, never a wrong answer."""
    damage(undisturbed)
    with pytest.raises(DataError, match=message) as error:
        read_gallery(undisturbed)
    assert "\n" not in str(error.value)


def test_a_gallery_with_hashes_is_read(undisturbed: Path) -> None:
    """Earlier versions wrote some; they are ignored, so record and table may be edited."""
    edit(csv_sha256="a" * 64, npy_sha256="b" * 64, sha256="c" * 64)(undisturbed)
    assert len(read_gallery(undisturbed).embeddings) == IMAGES - len(BAD)


def test_only_the_npy_is_the_gallery(tmp_path: Path) -> None:
    """The path of a side file is corrected, not guessed at."""
    with pytest.raises(DataError, match=r"g.json' is not the .npy file of a gallery; give that"):
        read_gallery(tmp_path / "g.json")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """160 MB are written in far less memory, through the map."""
    program = """
import re, sys
import numpy as np
from pathlib import Path
from airnet_cli.core import gallery
gallery.SYNC_BYTES = 8 * 2**20
count = 40_000
listing = gallery.Listing(tuple(map(str, range(count))), {})
rows = np.ones((1_000, 1_024), np.float32)

def peak():  # in MiB; not getrusage, whose peak is inherited from the tests' process
    return int(re.search("VmHWM: *\t? *([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024

with gallery.GalleryWriter(
    Path(sys.argv[1]), listing, dimensions=1_024, dtype="float32", settings={}, resume=False
) as writer:
    before = peak()
    for first in range(0, count, 1_000):
        writer.append(range(first, first + 1_000), rows)
    writer.finish({})
    print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "g.npy")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "g.npy").stat().st_size > 160e6
    assert float(done.stdout) < 40

"""Writing whole or not at all."""

import contextlib
import errno
import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from airnet_cli.core.files import (
    lock_folder,
    lock_output,
    map_array,
    remove_parts,
    replacing,
    replacing_together,
    write_json,
    write_text,
)
from airnet_cli.errors import OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replaces_when_the_block_ends_well(tmp_path):
    """The old file until the end, then the new one, and nothing beside it."""
    path = tmp_path / "scores.json"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.parent == path.parent  # a rename works within one file system only
        assert temporary != path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("existed", [True, False], ids=["over-a-file", "new"])
@pytest.mark.parametrize("failure", [OSError(28, "No space"), KeyboardInterrupt()], ids=repr)
def test_failure_leaves_what_was_there(tmp_path, existed, failure):
    """A full disk or Ctrl-C in the middle: the old file or none, and no leftover."""
    path = tmp_path / "model.safetensors"
    if existed:
        path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)) as said:
        write_half()
    if isinstance(failure, OSError):
        assert str(said.value) == f"can't write '{path}': No space; choose another place"
    assert names(tmp_path) == (["model.safetensors"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_makes_the_folder(tmp_path):
    """Parents included."""
    write_text(tmp_path / "runs" / "demo" / "note.txt", "Grüße\n")
    assert (tmp_path / "runs" / "demo" / "note.txt").read_bytes() == "Grüße\n".encode()


def test_a_place_that_can_not_be_written_is_one_line(tmp_path):
    """A file where a folder is needed, a name that is too long: which path, and what is wrong."""
    (tmp_path / "file").write_text("here before")
    for path, reason in (
        (tmp_path / "file" / "scores.json", "'.*file' is a file, not a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(OutputError, match=f"^can't write '.*': {reason}; choose another place"):
            write_text(path, "x")
    assert names(tmp_path) == ["file"]


def test_a_name_that_is_no_utf8_is_written_readably(tmp_path):
    """As Python and JSON show such bytes; the JSON can be read again, the file is valid UTF-8."""
    name = os.fsdecode(b"K\xf6ln.jpg")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"path": name}


def test_json_that_cant_be_written_leaves_the_old_one(tmp_path):
    """A value that is no JSON is found before anything is replaced."""
    path = tmp_path / "a.json"
    write_json(path, {"name": "Köln", "values": [1, 0.5, None]})
    assert json.loads(path.read_text("utf-8")) == {"name": "Köln", "values": [1, 0.5, None]}
    with pytest.raises(TypeError):
        write_json(path, {"path": tmp_path})
    assert json.loads(path.read_text("utf-8"))["name"] == "Köln"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("lock", [lock_folder, lock_output])
def test_one_process_has_a_lock(tmp_path, lock):
    """Until the block ends, well or not; no file is left, and another output stays free."""
    place = tmp_path / "place"
    place.mkdir()
    with lock(place) as first, lock_output(tmp_path / "other") as other:
        with lock(place) as second:
            assert (first, second, other) == (True, False, True)
        with lock(place) as third:
            assert not third, "the second one's end frees only what is its own"
    with pytest.raises(ZeroDivisionError), lock(place):
        raise ZeroDivisionError
    with lock(place) as last:
        assert last
    assert names(tmp_path) == ["place"]
    assert names(place) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    """The system knows which processes live; a file that was left locks nothing."""
    program = (
        "import sys, time; from pathlib import Path; from airnet_cli.core.files import *\n"
        f"with lock_folder(Path({str(tmp_path)!r})) as is_ours:\n"
        "    print(is_ours, flush=True), time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"True\n"
        with lock_folder(tmp_path) as is_ours:
            assert not is_ours
        holder.kill()
        holder.wait()
    assert names(tmp_path) == [".lock"]
    with lock_folder(tmp_path) as is_ours:
        assert is_ours


@pytest.mark.parametrize("lock", [lock_folder, lock_output])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch, lock, number):
    """As NFS without its lock service: nobody may believe that the place is locked."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "place").mkdir()
    with (
        pytest.raises(OutputError, match=r"can't lock '.*place'") as said,
        lock(tmp_path / "place"),
    ):
        pass
    assert os.strerror(number) in str(said.value)
    assert len(str(said.value).split("\n")) == 3


def test_other_threads_never_see_another_umask(tmp_path, monkeypatch):
    """It belongs to the whole process: their files would be open to everybody for a moment."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail(f"umask({mask})"))
    write_text(tmp_path / "one", "x")
    with replacing_together((tmp_path / "two",)) as (file,):
        file.write_text("x")
    (tmp_path / "plain").touch()
    assert len({(tmp_path / name).stat().st_mode for name in ("plain", "one", "two")}) == 1


def test_a_full_disk_is_one_line(tmp_path):
    """What the system said, and which file."""
    refused = pytest.raises(OutputError, match=r"can't write '.*a.json': No space left")
    with refused as raised, replacing(tmp_path / "a.json"):
        raise OSError(28, "No space left on device")
    assert "\n" not in str(raised.value)


def test_forked_processes_lock_nothing(tmp_path):
    """Those that read images live on for seconds when their parent is killed."""
    reading, writing = os.pipe()
    began, begin = os.pipe()
    with lock_folder(tmp_path) as is_ours:
        assert is_ours
        child = os.fork()
        if not child:
            os.close(writing)
            os.write(begin, b"!")
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
        os.read(began, 1)
    with lock_folder(tmp_path) as again:
        assert again, "the child has it"
    os.close(writing)
    os.waitpid(child, 0)
    for handle in (reading, began, begin):
        os.close(handle)


def test_what_killed_processes_left_is_removed(tmp_path):
    """Under temporary names, of one file or of all; nothing else."""
    kept = [".a.json", ".a.json.part", "a.json.part"]
    for name in (".a.json.abcd_123.part", ".b.json.abcd_123.part", *kept):
        (tmp_path / name).touch()
    remove_parts(tmp_path, "a.json")
    assert names(tmp_path) == sorted([*kept, ".b.json.abcd_123.part"])
    remove_parts(tmp_path)
    assert names(tmp_path) == kept


def test_files_that_belong_together(tmp_path: Path) -> None:
    """All of them are put into place when the block ends well, under their own names until then."""
    paths = (tmp_path / "new" / "a.bin", tmp_path / "new" / "a.xml")
    with replacing_together(paths) as written:
        for file, path in zip(written, paths, strict=True):
            assert file.name == path.name
            file.write_text(path.suffix)
        assert not any(path.exists() for path in paths)
    assert [path.read_text() for path in paths] == [".bin", ".xml"]
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_files_that_belong_together_or_none(tmp_path: Path, error: type[BaseException]) -> None:
    """Whatever ends the block: the old ones stay, nothing else does."""
    old = tmp_path / "a.xml"
    old.write_text("old")
    with contextlib.suppress(error), replacing_together((tmp_path / "a.bin", old)) as written:
        for file in written:
            file.write_text("new")
        raise error
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_files_that_belong_together_have_no_place(tmp_path: Path) -> None:
    """The line is that of a single file."""
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "a.xml"
    with pytest.raises(OutputError, match="can't write"), replacing_together((place,)):
        pass


def test_a_folder_that_was_left_is_removed(tmp_path: Path) -> None:
    """With what is in it."""
    left = tmp_path / ".a.xml.abcdefgh.part"
    left.mkdir()
    (left / "a.bin").write_text("half")
    remove_parts(tmp_path, "a.xml")
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_is_mapped_or_refused(tmp_path: Path) -> None:
    """Cut off, too long, another kind of file: an error with the reason, not other numbers."""
    path = tmp_path / "a.npy"
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(path, matrix)
    good = path.read_bytes()
    assert np.array_equal(map_array(path), matrix)
    assert map_array(path, mode="c").flags.writeable
    np.savez(tmp_path / "b.npz", a=matrix)
    objects = io.BytesIO()
    np.save(objects, np.array([None]), allow_pickle=True)
    for content in (
        *(good[:length] for length in range(0, len(good), 5)),
        good + b"\0",
        good.replace(b"(3, 4)", b"(3, 3)"),
        good.replace(b"(3, 4)", b"(3, 4 "),
        good.replace(b"<f4", b"<f5"),
        (tmp_path / "b.npz").read_bytes(),
        objects.getvalue(),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"\w"):
            map_array(path)
    with pytest.raises(FileNotFoundError):
        map_array(tmp_path / "none.npy")

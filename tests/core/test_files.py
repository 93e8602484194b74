"""Writing whole or not at all."""

import contextlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from airnet_cli.core.files import (
    holding,
    holding_output,
    parse_json,
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


def test_others_may_read_it(tmp_path):
    """The same permissions as a file that was simply written, not a temporary file's."""
    (tmp_path / "plain").touch()
    write_text(tmp_path / "careful", "x")
    plain, careful = ((tmp_path / name).stat().st_mode for name in ("plain", "careful"))
    assert stat.filemode(careful) == stat.filemode(plain)


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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting property name"),
        ("9" * 5_000, "integer string conversion"),
        (b"\xff\xfe\xff", "codec"),
        (" " * (64 * 2**20 + 1), "64 MiB of JSON, more than any that airnet writes"),
    ],
    ids=["deep", "broken", "long-number", "no-text", "large"],
)
def test_json_of_strangers_fails_as_value_error(text, reason):
    """Whatever is wrong with it, so that a reader has one thing to catch."""
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
    assert parse_json('{"a": [1, null]}') == {"a": [1, None]}


def test_json_that_cant_be_written_leaves_the_old_one(tmp_path):
    """A value that is no JSON is found before anything is replaced."""
    path = tmp_path / "a.json"
    write_json(path, {"name": "Köln", "values": [1, 0.5, None]})
    assert json.loads(path.read_text("utf-8")) == {"name": "Köln", "values": [1, 0.5, None]}
    with pytest.raises(TypeError):
        write_json(path, {"path": tmp_path})
    assert json.loads(path.read_text("utf-8"))["name"] == "Köln"
    assert names(tmp_path) == ["a.json"]


def test_a_folder_has_one_holder(tmp_path):
    """Held until the block ends, well or not; no file is left in it."""
    with holding(tmp_path) as first:
        with holding(tmp_path) as second:
            assert (first, second) == (True, False)
        with holding(tmp_path) as third:
            assert not third, "the second one's end frees nothing that is not its own"
    with pytest.raises(ZeroDivisionError), holding(tmp_path):
        raise ZeroDivisionError
    with holding(tmp_path) as last:
        assert last
    assert names(tmp_path) == []


def test_what_a_killed_process_held_is_free(tmp_path):
    """The system knows who is alive; no stale lock is left to be cleaned up."""
    program = (
        "import sys, time; from pathlib import Path; from airnet_cli.core.files import holding\n"
        f"with holding(Path({str(tmp_path)!r})) as is_ours:\n"
        "    print(is_ours, flush=True), time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"True\n"
        with holding(tmp_path) as is_ours:
            assert not is_ours
        holder.kill()
        holder.wait()
    with holding(tmp_path) as is_ours:
        assert is_ours


def test_a_folder_that_was_removed_is_not_held(tmp_path):
    """Nor is another one of the same name taken for it."""
    with holding(tmp_path / "gone") as is_ours:
        assert not is_ours


def test_a_full_disk_is_one_line(tmp_path):
    """What the system said, and which file."""
    refused = pytest.raises(OutputError, match=r"can't write '.*a.json': No space left")
    with refused as raised, replacing(tmp_path / "a.json"):
        raise OSError(28, "No space left on device")
    assert "\n" not in str(raised.value)


def test_an_output_has_one_holder_and_its_folder_has_room_for_others(tmp_path):
    """By a file beside it, which is gone at the end."""
    with holding_output(tmp_path / "a.npy") as first, holding_output(tmp_path / "b.npy") as other:
        with holding_output(tmp_path / "a.npy") as second:
            assert (first, other, second) == (True, True, False)
        with holding_output(tmp_path / "a.npy") as third:
            assert not third, "the second one's end frees nothing that is not its own"
    assert names(tmp_path) == []
    (tmp_path / ".a.npy.lock").touch()  # of a killed process
    with holding_output(tmp_path / "a.npy") as is_ours:
        assert is_ours
    assert names(tmp_path) == []


def test_forked_processes_hold_nothing(tmp_path):
    """Those that read images live on for seconds when their parent is killed."""
    reading, writing = os.pipe()
    began, begin = os.pipe()
    with holding(tmp_path) as is_ours:
        assert is_ours
        child = os.fork()
        if not child:
            os.close(writing)
            os.write(begin, b"!")
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
        os.read(began, 1)
    with holding(tmp_path) as again:
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

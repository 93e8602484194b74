"""Writing whole or not at all."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from airnet_cli.core.files import holding, replacing, write_json, write_text


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

    with pytest.raises(type(failure)):
        write_half()
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

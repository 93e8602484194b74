"""Archives of strangers: unpacked whole and inside their folder, or not at all."""

import random
import shutil
import stat
import struct
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from airnet_cli.core.data import archive
from airnet_cli.core.data.archive import extract_zip, staged_folder
from airnet_cli.errors import AirnetError, DataError
from airnet_cli.workflows.prepare_data import prepare_csv
from airnet_cli.workflows.preparing import PrepareOptions

PARTS = ["a.jpg", "b.jpg", "A.JPG", "set", "ü.jpg", "a b", "-rf", "<script>", "'\"", "x" * 300]
PARTS += ["..", ".", "", "~", "C:", ".hidden", "__MACOSX", "a\nb", "\x1b[2J", "CON", "\U0001f600"]
MODES = [0, 0, 0, stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755]
ODD_MODES = [stat.S_IFLNK | 0o777, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]


def odd_name(chance: random.Random) -> str:
    name = chance.choice("/\\").join(chance.choices(PARTS, k=chance.randrange(1, 4)))
    return chance.choice(("", "", "", "", "/", "//", "../", "\\\\")) + name


def odd_zip(path: Path, chance: random.Random) -> dict[str, bytes]:
    """Write a zip whose members may be anything; what was meant to be in it."""
    meant: dict[str, bytes] = {}
    is_odd = chance.random() < 0.5
    with zipfile.ZipFile(path, "w") as opened:
        for number in range(chance.randrange(1, 6)):
            name = odd_name(chance) if is_odd else f"set/{number}.jpg"
            info = zipfile.ZipInfo(name)
            info.compress_type = chance.choice((0, 8, 8, 12, 14))
            modes = MODES + ODD_MODES if chance.random() < 0.1 else MODES
            info.external_attr = chance.choice(modes) << 16
            content = chance.randbytes(chance.choice((0, 1, 40)))
            opened.writestr(info, content)
            meant[name] = content
    return meant


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): b"link" if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


@pytest.mark.filterwarnings("ignore:Duplicate name")  # of writing a hostile zip
@pytest.mark.parametrize("kind", ["members", "bytes"])
def test_hostile_zips(tmp_path: Path, survive, damage, kind: str) -> None:
    """Names that lead out, links, doubles, broken bytes: all files as they went in, or none."""
    source, place = tmp_path / "set.zip", tmp_path / "deep" / "place"
    unpacked = 0

    def attempt(chance: random.Random) -> None:
        nonlocal unpacked
        meant = odd_zip(source, chance)
        if kind == "bytes":
            source.write_bytes(damage(source.read_bytes(), chance))
        try:
            with staged_folder(place) as stage:
                count = extract_zip(source, stage)
        except AirnetError:
            assert not place.exists()
            raise
        finally:
            assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "set.zip"]
            assert {path.name for path in (tmp_path / "deep").iterdir()} <= {"place"}
        files = files_under(place)
        shutil.rmtree(place)
        assert len(files) == count
        assert set(files.values()) <= set(meant.values()), "checksums are checked"
        if kind == "members":
            assert set(files) <= {str(PurePosixPath(name.replace("\\", "/"))) for name in meant}
        unpacked += 1

    survive(f"zips, {kind}", attempt)
    assert unpacked > 20


def raw_zip(path: Path, count: int, *, size: int = 0, says: int | None = None) -> None:
    """A zip of `count` members that all lie at the same place, by bytes: zipfile takes minutes."""
    data = bytes(size)
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 33, 0, size, size, 8, 0)
    entries = bytearray()
    for number in range(count):
        entries += struct.pack(
            "<4sHHHHHHIIIHHHHHII",
            b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, size, size, 8, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        entries += b"%08d" % number
    said = min(count if says is None else says, 65535)
    start = len(local) + 8 + size
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, said, said, len(entries), start, 0)
    path.write_bytes(local + b"00000000" + data + entries + end)


def test_too_many_members(tmp_path: Path, in_child, is_soak) -> None:
    """They are refused while their list is read, whatever the file says: a million where there is
    time, a tenth of that in the usual tests.
    """
    assert archive.MAX_MEMBERS == 1_000_000
    most = archive.MAX_MEMBERS if is_soak else 100_000
    raw_zip(tmp_path / "many.zip", most + 1, says=1)
    program = """
import sys
from pathlib import Path
from airnet_cli.core.data import archive
from airnet_cli.core.data.archive import extract_zip
archive.MAX_MEMBERS = int(sys.argv[3])
try:
    extract_zip(Path(sys.argv[1]), Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""
    (tmp_path / "out").mkdir()
    said = in_child(program, str(tmp_path / "many.zip"), str(tmp_path / "out"), str(most))
    assert said.startswith("DataError")
    assert f"it has more than {most:,} members" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_one_place_under_many_names(tmp_path: Path) -> None:
    """A bomb without packing: a thousand members that all are the same megabyte."""
    raw_zip(tmp_path / "many.zip", 1000, size=2**20)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="it grows from"):
        extract_zip(tmp_path / "many.zip", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_prepare_leaves_the_old_set(tmp_path: Path, survive, damage) -> None:
    """A broken archive of one's own images changes nothing of the set that is there."""
    from PIL import Image

    Image.new("RGB", (4, 8), "red").save(tmp_path / "a.png")
    table = "path,person_id,camera_id,split\n" + "".join(
        f"a.png,{person},1,{split}\n" for person, split in ((1, "train"), (2, "query"))
    )
    source = tmp_path / "own.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.write(tmp_path / "a.png", "a.png")
        opened.writestr("table.csv", table)
    good = source.read_bytes()
    root = tmp_path / "data"
    prepare_csv(source, PrepareOptions(data_root=root, name="own", workers=0))
    before = files_under(root)

    def attempt(chance: random.Random) -> None:
        source.write_bytes(damage(good, chance))
        try:
            prepare_csv(source, PrepareOptions(data_root=root, name="own", workers=0))
        except AirnetError:
            assert files_under(root) == before
            raise
        assert files_under(root) == before, "the same bytes"

    survive("own sets", attempt, cases=100)

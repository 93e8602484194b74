"""Archives from strangers: harmless ones are unpacked whole, others not at all."""

import stat
import zipfile
from pathlib import Path

import pytest

from airnet_cli.core.data import archive
from airnet_cli.core.data.archive import extract_zip, staged_folder
from airnet_cli.errors import DataError


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def write(path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return path


def member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def test_unpacks_what_is_wanted(tmp_path: Path) -> None:
    """Wanted files come out as they went in; hidden ones and a Mac's extras do not."""
    source = write(
        tmp_path / "few.zip",
        [
            ("set/", b""),
            ("set/a.png", b"1"),
            ("set\\b\\c.png", b"2"),
            ("set/skip.txt", b"3"),
            ("set/._a.png", b"4"),
            ("__MACOSX/set/a.png", b"5"),
            (".git/config", b"6"),
            ("set/empty.png", b""),
        ],
    )
    (tmp_path / "out").mkdir()
    reports: list[tuple[int, int | None]] = []
    count = extract_zip(
        source,
        tmp_path / "out",
        keep=lambda path: path.suffix == ".png",
        progress=lambda stage, done, total, unit: reports.append((done, total)),
    )
    assert files_under(tmp_path / "out") == {
        "set/a.png": b"1",
        "set/b/c.png": b"2",
        "set/empty.png": b"",
    }
    assert count == 3
    assert reports[-1] == (3, 3)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        pytest.param([("/etc/x", b"")], "leads out of the folder", id="absolute"),
        pytest.param([("../x", b"")], "leads out of the folder", id="parent"),
        pytest.param([("a\\..\\..\\x", b"")], "leads out of the folder", id="backslashes"),
        pytest.param([("C:\\x", b"")], "leads out of the folder", id="drive"),
        pytest.param(
            [(member("a", stat.S_IFLNK | 0o777), b"/etc")], "is a link or a device", id="link"
        ),
        pytest.param(
            [(f"a{number}", b"\0" * 2**20) for number in range(4)],
            "it unpacks to more than 200 times its size",
            id="zip-bomb",
        ),
    ],
)
def test_refuses_unsafe(tmp_path: Path, members, why: str) -> None:
    """Nothing at all is written, though a harmless file comes first and no file was wanted."""
    source = write(tmp_path / "bad.zip", [("first.png", b"1"), *members])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "out").mkdir()
    for keep in (lambda path: True, lambda path: False):
        with pytest.raises(DataError, match=f"not safe to unpack: .*{why}"):
            extract_zip(source, tmp_path / "deep" / "out", keep=keep)
    assert files_under(tmp_path / "deep") == {}


@pytest.mark.filterwarnings("ignore:Duplicate name")  # of writing it
def test_refuses_one_name_twice(tmp_path: Path) -> None:
    """The second file would overwrite the first."""
    source = write(tmp_path / "few.zip", [("a", b"1"), ("./a", b"2")])
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"can't unpack .*: File exists"):
        extract_zip(source, tmp_path / "out")


def test_refuses_encrypted(tmp_path: Path) -> None:
    """There is no way to say a password."""
    source = write(tmp_path / "secret.zip", [("a", b"1")])
    content = bytearray(source.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    source.write_bytes(content)
    with pytest.raises(DataError, match=r"is encrypted.*unpack it yourself"):
        extract_zip(source, tmp_path)


def test_refuses_what_does_not_fit(tmp_path: Path, monkeypatch) -> None:
    """Room is checked before the first file, not found missing after an hour."""
    usage = type("Usage", (), {"free": 2})
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda folder: usage)
    source = write(tmp_path / "few.zip", [("a", b"123")])
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="make room or choose another --data-root"):
        extract_zip(source, tmp_path / "out")
    assert files_under(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Quota exceeded", "is a web page, not a zip archive"),
        (b"PK\x03\x04 and no more", "is a damaged zip archive"),
        (b"Rar!", "is not a zip archive"),
        (b"", "is not a zip archive"),
    ],
)
def test_says_what_it_is_instead(tmp_path: Path, content: bytes, message: str) -> None:
    """A saved error page is the usual thing to be called .zip and be none."""
    source = tmp_path / "set.zip"
    source.write_bytes(content)
    with pytest.raises(DataError, match=message):
        extract_zip(source, tmp_path)


def test_damaged_member(tmp_path: Path) -> None:
    """A flipped byte in an image is noticed by the zip's checksum."""
    source = tmp_path / "few.zip"
    with zipfile.ZipFile(source, "w") as opened:
        opened.writestr("a", b"some bytes")
    source.write_bytes(source.read_bytes().replace(b"some", b"same", 1))
    with pytest.raises(DataError, match=r"is a damaged zip archive .*CRC"):
        extract_zip(source, tmp_path)


def test_staged_folder_takes_the_place(tmp_path: Path) -> None:
    """The new folder replaces the old one whole, and leaves nothing else."""
    target = tmp_path / "set" / "images"
    for number in (1, 2):
        with staged_folder(target) as stage:
            (stage / f"{number}.png").write_bytes(b"")
            assert not (target / f"{number}.png").exists()
    assert sorted(files_under(tmp_path)) == ["set/images/2.png"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [DataError("bad image"), KeyboardInterrupt()])
def test_staged_folder_keeps_the_old_one(tmp_path: Path, error: BaseException) -> None:
    """After an error or Ctrl-C everything is as it was."""
    target = tmp_path / "images"
    target.mkdir()
    (target / "old.png").touch()

    def fail() -> None:
        with staged_folder(target) as stage:
            (stage / "new.png").touch()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert sorted(files_under(tmp_path)) == ["images/old.png"]
    assert list(tmp_path.iterdir()) == [target]

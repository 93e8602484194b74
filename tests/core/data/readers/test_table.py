"""Tables of the user's own images: what is read, and how bad rows are named."""

from pathlib import Path

import pytest

from airnet_cli.core.data.readers import table
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.errors import DataError

HEADER = "path,person_id,camera_id,split\n"


def write(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "few.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "encoding", "lines"),
    [
        pytest.param(HEADER + "a/zoë.png,0,0,train\nb.png,-1,2,gallery\n", "utf-8-sig", (2, 3),
                     id="mark"),
        pytest.param((HEADER + "a/zoë.png,0,0,train\nb.png,-1,2,gallery").replace("\n", "\r\n"),
                     "utf-8", (2, 3), id="crlf, no last line end"),
        pytest.param("split,note,camera_id,person_id,path,,\n"
                     'train,"two\nlines",0,0,a/zoë.png,,\n\n,,,,,,\ngallery,,2,-1,b.png,,\n',
                     "utf-8", (2, 6), id="other order, more columns, blank lines"),
        pytest.param(" path , person_id,camera_id ,split\n"
                     "./a//zoë.png , 0,0, train\n.\\b.png,-1,2,gallery\n",
                     "utf-8", (2, 3), id="spaces and backslashes"),
    ],
)  # fmt: skip
def test_reads(tmp_path: Path, text: str, encoding: str, lines: tuple[int, int]) -> None:
    """Marks, line ends, order of columns and blank rows do not matter."""
    assert table.read(write(tmp_path, text, encoding)) == (
        table.TableRow(lines[0], ImageRecord("a/zoë.png", 0, 0, "train")),
        table.TableRow(lines[1], ImageRecord("b.png", -1, 2, "gallery")),
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a.png,1,1,test", "split 'test' is none of train, query, gallery"),
        ("a.png,one,1,train", "person_id 'one' is not an integer"),
        ("a.png,1_0,1,train", "person_id '1_0' is not an integer"),
        ("a.png,-2,1,gallery", "person_id '-2' is not an integer from -1 on"),
        ("a.png,1,-1,train", "camera_id '-1' is not an integer from 0 on"),
        ("a.png,-1,1,query", "person_id -1 is junk, which query can't have"),
        ("a.png,0,1,query", "person_id 0 is a distractor, which query can't have"),
        (",1,1,train", "path '' is not a file's"),
        ("/a.png,1,1,train", "path '/a.png' is not relative"),
        ("a\\..\\..\\b.png,1,1,train", "is not relative"),
        ("C:\\a.png,1,1,train", "is not relative"),
        ("a.png,1", "2 cells, and the first line has 4"),
        ("a,b.png,1,1,train", "5 cells, and the first line has 4"),
        ("a\0.png,1,1,train", r"path 'a\x00.png' is not a file's"),
        ("a.png,1,1," + "x" * 9000, "split 'xxx"),
        ("./good.png,2,3,train", "path 'good.png' is in train already, line 2"),
    ],
)
def test_bad_row(tmp_path: Path, row: str, problem: str) -> None:
    """A bad row is named with its line number and its value."""
    path = write(tmp_path, f"{HEADER}good.png,1,1,train\n{row}\n")
    with pytest.raises(DataError) as caught:
        table.read(path)
    assert f"{path} has 1 bad row: line 3: " in str(caught.value)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_same_image_in_two_splits(tmp_path: Path) -> None:
    """Some protocols rank the query images too."""
    path = write(tmp_path, HEADER + "a.png,1,1,query\na.png,1,1,gallery\n")
    assert [row.record.split for row in table.read(path)] == ["query", "gallery"]


def test_all_bad_rows_at_once(tmp_path: Path) -> None:
    """The first ten are shown, the others counted, in one line."""
    path = write(tmp_path, HEADER + "a.png,x,1,train\n" * 13)
    with pytest.raises(DataError, match=r"13 bad rows: line 2: .*; line 11: .* and 3 more") as e:
        table.read(path)
    assert "line 12" not in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", r"needs the columns .* \(found: nothing\)", id="empty"),
        pytest.param(HEADER.encode(), "has no rows under its header", id="header only"),
        pytest.param(b"path,pid,camid,split\n",
                     r"missing: person_id, camera_id \(found: path, pid", id="names"),
        pytest.param(b"path;person_id;camera_id;split\n", "separated by commas", id="semicolons"),
        pytest.param(HEADER.replace("\n", ",path\n").encode(), "a column twice: path", id="twice"),
        pytest.param(HEADER.encode("utf-16"), "can't read the table .* in UTF-8", id="utf-16"),
        pytest.param(HEADER.encode() + b'"a.png"x,1,1,train\n', "can't read .* in UTF-8, with comm",
                     id="quotes"),
        pytest.param(None, r"can't read the table .*few\.csv: No such file", id="missing"),
    ],
)  # fmt: skip
def test_not_a_table(tmp_path: Path, content: bytes | None, message: str) -> None:
    """A file that is not such a table is refused as a whole."""
    path = tmp_path / "few.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        table.read(path)

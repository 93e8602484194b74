"""Features of other tools: what is read, and one plain line for everything that can't be."""

import io

import numpy as np
import pytest

from airnet_cli.core.gallery.files import Gallery
from airnet_cli.core.gallery.folder import append
from airnet_cli.core.retrieval.features import read_features
from airnet_cli.errors import DataError

LABELS = "person_id,camera_id\n1,1\n2,1\n-1,2\n"


def write(folder, *, matrix=None, table=LABELS):
    """Write `Q.npy` (3 x 4 by default) and `Q.csv`, and return the former's path."""
    path = folder / "Q.npy"
    if isinstance(matrix, bytes):
        path.write_bytes(matrix)
    else:
        np.save(path, np.arange(12.0).reshape(3, 4) if matrix is None else matrix)
    if table is not None:
        content = table if isinstance(table, bytes) else table.encode()
        path.with_suffix(".csv").write_bytes(content)
    return path


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_reads_matrix_and_labels(tmp_path, dtype, order):
    """Floats of any size, in either order, come back as they are, with their labels."""
    matrix = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    features = read_features(write(tmp_path, matrix=matrix))
    assert features.embeddings.dtype == dtype
    np.testing.assert_array_equal(features.embeddings, matrix)
    assert features.labels.person_ids.tolist() == [1, 2, -1]
    assert features.labels.camera_ids.tolist() == [1, 1, 2]
    assert features.labels.person_ids.dtype == features.labels.camera_ids.dtype == np.int64


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(b"\xef\xbb\xbf" + LABELS.encode(), id="byte order mark"),
        pytest.param(LABELS.replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param(LABELS.rstrip(), id="no newline at the end"),
        pytest.param(LABELS + "\n\n", id="blank lines at the end"),
        pytest.param("person_id,camera_id\n1 , 1\n 2,1\n-1, 2\n", id="spaces round numbers"),
        pytest.param('path,camera_id,person_id\n"a,b.jpg",1,1\nc.jpg,1,2\nd.jpg,2,-1\n',
                     id="other columns, other order"),
    ],
)  # fmt: skip
def test_reads_tables_as_people_write_them(tmp_path, table):
    """Spreadsheets' habits and additional columns are fine."""
    features = read_features(write(tmp_path, table=table))
    assert features.labels.person_ids.tolist() == [1, 2, -1]
    assert features.labels.camera_ids.tolist() == [1, 1, 2]
    has_paths = "path" in str(table)
    assert features.labels.paths == (("a,b.jpg", "c.jpg", "d.jpg") if has_paths else None)


def saved(matrix) -> bytes:
    file = io.BytesIO()
    np.save(file, matrix, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        pytest.param(np.arange(3.0), r"float64 of the shape \(3,\)", id="vector"),
        pytest.param(np.ones((3, 2, 2)), r"of the shape \(3, 2, 2\)", id="three dimensions"),
        pytest.param(np.ones((3, 4), dtype=int), "holds int64", id="whole numbers"),
        pytest.param(np.ones((3, 4), dtype=complex), "holds complex128", id="complex numbers"),
        pytest.param(np.ones((0, 4)), r"of the shape \(0, 4\)", id="no rows"),
        pytest.param(
            np.ones((3, 4), dtype=">f4"),
            "holds >f4 .* in this machine's byte order",
            id="byte order",
        ),
        pytest.param(saved(np.array([{}], dtype=object)), "can't be read", id="pickled objects"),
        pytest.param(saved(np.ones((3, 4)))[:-8], "can't be read", id="truncated"),
        pytest.param(b"", "can't be read", id="empty file"),
        pytest.param(b"<html>not found</html>", "can't be read", id="a web page"),
    ],
)
def test_refuses_what_is_no_matrix_of_floats(tmp_path, matrix, message):
    """The line names the file and what is wrong with it."""
    refuses(write(tmp_path, matrix=matrix), "Q.npy", message)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param(None, "there is no .*Q.csv beside .*Q.npy", id="no table"),
        pytest.param("", "no column person_id and no column camera_id", id="empty table"),
        pytest.param("person_id,cam\n1,1\n", "no column camera_id", id="column missing"),
        pytest.param("person_id,camera_id\n1,1\n", "Q.csv has 1 rows under", id="too few rows"),
        pytest.param(LABELS + "3,1\n", "Q.csv has 4 rows under", id="too many rows"),
        pytest.param(
            "person_id,camera_id\n1,1\nx2,1\n3,1\n",
            "row 2 under the header: person_id is 'x2'",
            id="no number",
        ),
        pytest.param(
            "person_id,camera_id\n1,1\n2,\n3,1\n", "row 2 .*: camera_id is ''", id="empty cell"
        ),
        pytest.param(
            f"person_id,camera_id\n{10**30},1\n", "row 1 .*: person_id is '1000", id="too large"
        ),
        pytest.param("person_id,camera_id\n1\n", "line 2: it has 1 cells", id="short line"),
        pytest.param("person_id,camera_id\n1,2,3\n", "line 2: it has 3 cells", id="long line"),
        pytest.param(b"person_id,camera_id\n\xff\xfe,1\n", "as UTF-8 text", id="not UTF-8"),
        pytest.param('person_id,camera_id\n"1,1\n', "can't be read as a table", id="open quote"),
    ],
)
def test_refuses_tables_that_do_not_fit(tmp_path, table, message):
    """The line names the table, the line in it and what would be right."""
    refuses(write(tmp_path, table=table), "Q.csv", message)


def test_refuses_a_missing_file_and_a_folder(tmp_path):
    """There must be a file."""
    refuses(tmp_path / "Q.npy", "Q.npy", "there is no file")
    refuses(tmp_path, str(tmp_path), r"so it is not a gallery")


def refuses(path, name, message):
    with pytest.raises(DataError, match=message) as raised:
        read_features(path)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def segments(folder, columns, *, rows=None):
    """A folder of two parts of two and one rows of `rows`, with `columns` next to the paths."""
    rows = np.eye(3, 4, dtype=np.float32) if rows is None else rows
    record = {"fingerprint": "ab" * 32, "heads": {"A1": [0, 4]}, "flip": False}
    record |= {"normalize_heads": False, "dimensions": 4, "dtype": "float32", "skipped": []}
    for part in (slice(0, 2), slice(2, 3)):
        cells = {column: tuple(each[part]) for column, each in columns.items()}
        cells = {"path": [f"{row}.jpg" for row in range(3)][part], **cells}
        append(folder, Gallery(folder, rows[part], cells, {}, {}), record)
    return folder


def test_reads_a_folder_of_segments(tmp_path):
    """Rows and labels of all segments, as of one file."""
    folder = segments(tmp_path / "people", {"camera_id": "112", "person_id": "508"})
    features = read_features(folder)
    np.testing.assert_array_equal(features.embeddings, np.eye(3, 4))
    assert features.labels.person_ids.tolist() == [5, 0, 8]
    assert features.labels.camera_ids.tolist() == [1, 1, 2]
    assert features.labels.paths == ("0.jpg", "1.jpg", "2.jpg")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"person_id": "123"}, "people has no column camera_id; its columns must include"),
        ({}, "people has no column person_id and no column camera_id"),
        (
            {"person_id": "1x3", "camera_id": "111"},
            r"people, row 2 under the header: person_id is 'x'; it must be",
        ),
    ],
)
def test_refuses_segments_without_labels(tmp_path, columns, message):
    """One line that names the column, or the row."""
    refuses(segments(tmp_path / "people", columns), "people", message)

"""Folders, files, lists and tables become one list, in the same order everywhere."""

import itertools
from pathlib import Path

import pytest

from airnet_cli.core.data.sources import list_images, relative_to_folder
from airnet_cli.errors import DataError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with images of every suffix, and what is no image beside them."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "gallery/b.JPG",
        "gallery/a/2.jpeg",
        "gallery/a/10.png",
        "gallery/a.bmp",
        "gallery/a-b.webp",
        "gallery/ü.tif",
        "gallery/Z.tiff",
        "gallery/c.gif",
        "gallery/.hidden.jpg",
        "gallery/._b.jpg",
        "gallery/.cache/x.jpg",
        "gallery/notes.txt",
        "gallery/Thumbs.db",
        "odd.image",
        "more/1.jpg",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path


def names(*inputs: str, must_exist: bool = True) -> list[str]:
    sources = list_images([Path(each) for each in inputs], must_exist=must_exist)
    return [path.as_posix() for path in sources.paths]


FOLDER = [
    "gallery/Z.tiff",
    "gallery/a-b.webp",
    "gallery/a.bmp",
    "gallery/a/10.png",
    "gallery/a/2.jpeg",
    "gallery/b.JPG",
    "gallery/c.gif",
    "gallery/ü.tif",
]
"""Code points: capitals first, "-" before "." before "/", 10 before 2."""


def test_folder_is_searched_in_the_order_of_paths(tree: Path) -> None:
    """Images at any depth by suffix; hidden files and folders and everything else left out."""
    assert names("./gallery") == FOLDER


@pytest.mark.parametrize(
    "inputs", list(itertools.permutations(["more", "odd.image", "gallery"])), ids=" ".join
)
def test_order_is_that_of_paths_not_of_inputs(tree: Path, inputs: tuple[str, ...]) -> None:
    """However the inputs are ordered, the list is the same; a file's own suffix is free."""
    assert names(*inputs) == [*FOLDER, "more/1.jpg", "odd.image"]


def test_an_image_that_is_named_twice_counts_once(tree: Path) -> None:
    """Folder, file and detour to the same file are one image."""
    assert names("more", "more/1.jpg", "gallery/../more/1.jpg") == ["more/1.jpg"]


def test_a_link_to_a_folder_above_ends(tree: Path) -> None:
    """Each folder is read once; a link to another folder is followed."""
    (tree / "more" / "up").symlink_to(tree / "more")
    (tree / "more" / "away").symlink_to(tree / "gallery" / "a")
    assert names("more") == ["more/1.jpg", "more/away/10.png", "more/away/2.jpeg"]


def test_text_list(tree: Path) -> None:
    """One path a line, relative to the list, with any line ends and a mark at its start."""
    content = "\ufeff../gallery/b.JPG\r\n\n  1.jpg  \n"
    (tree / "more" / "list.txt").write_text(content, encoding="utf-8", newline="")
    assert names("more/list.txt") == ["gallery/b.JPG", "more/1.jpg"]


def test_a_detour_through_a_link_is_followed(tree: Path) -> None:
    """`link/../x` is beside what the link points to, not beside the link."""
    (tree / "link").symlink_to(tree / "gallery" / "a")
    assert names("link/../b.JPG") == ["gallery/b.JPG"]
    assert relative_to_folder([Path("link/../b.JPG")], Path("more")) == ("../gallery/b.JPG",)


def test_table_keeps_its_columns(tree: Path) -> None:
    """Any columns stay, as text and in their order, in step with the paths."""
    table = 'note,path,person_id\n"a, b",1.jpg,007\n\n,../gallery/c.gif,2\n'
    (tree / "more" / "shop.csv").write_text(table)
    sources = list_images([Path("more/shop.csv")], must_exist=True)
    assert [path.name for path in sources.paths] == ["c.gif", "1.jpg"]
    assert sources.columns == {"note": ("", "a, b"), "person_id": ("2", "007")}


def test_columns_of_several_inputs_are_joined(tree: Path) -> None:
    """What an input does not say stays empty; a table says more than the folder of its images."""
    (tree / "one.csv").write_text("path,person_id\nmore/1.jpg,5\n")
    (tree / "two.csv").write_text("path,camera_id\ngallery/c.gif,3\n")
    sources = list_images([Path("more"), Path("two.csv"), Path("one.csv")], must_exist=True)
    assert sources.columns == {"camera_id": ("3", ""), "person_id": ("", "5")}


@pytest.mark.parametrize(
    ("files", "inputs", "message"),
    [
        ({}, ["nowhere"], "'nowhere' does not exist; give folders, images"),
        ({"empty/.keep": ""}, ["empty"], r"no images in 'empty' \(.jpg, .jpeg"),
        ({"e.txt": "\n\n"}, ["e.txt"], "no images in 'e.txt'"),
        ({"e.csv": "path,id\n"}, ["e.csv"], "no images in 'e.csv'"),
        ({"e.csv": ""}, ["e.csv"], "needs the columns path, .*found: nothing"),
        ({"e.csv": "file,id\na,1\n"}, ["e.csv"], "missing: path .found: file, id"),
        ({"e.csv": "path,id,id\na,1,1\n"}, ["e.csv"], "a column twice: id"),
        ({"e.csv": "path,id\nmore/1.jpg\n"}, ["e.csv"], "1 bad row: line 2: 1 cells"),
        ({"e.csv": "path,id\n\n,3\n"}, ["e.csv"], "1 bad row: line 3: no path"),
        ({"e.csv": 'path\n"more/1.jpg\n'}, ["e.csv"], "can't read .*in UTF-8, with commas"),
        ({"e.csv": "path\ngone.jpg\n"}, ["e.csv"], "1 of the images.*e.csv, line 2: 'gone.jpg'"),
        ({"e.txt": "a\nmore/1.jpg\nmore"}, ["e.txt"], "2 of the.*line 1: 'a'; e.txt, line 3"),
        (
            {"e.csv": "path,id\nmore/1.jpg,1\nmore/../more/1.jpg,2\n"},
            ["e.csv"],
            "e.csv, line 3: .* is in e.csv, line 2 already; list it once",
        ),
    ],
)
def test_what_is_wrong_with_an_input(
    tree: Path, files: dict[str, str], inputs: list[str], message: str
) -> None:
    """One line that names the input, the line and the value."""
    for name, content in files.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        names(*inputs)
    assert "\n" not in str(error.value)


def test_missing_images_may_be_left_to_the_reader(tree: Path) -> None:
    """Whoever skips bad images skips these as well."""
    (tree / "e.txt").write_text("gone.jpg\n")
    assert names("e.txt", must_exist=False) == ["gone.jpg"]


def test_a_name_that_is_no_text_is_refused(tree: Path) -> None:
    """A file name that UTF-8 can't hold is named, not garbled."""
    try:
        (tree / "more" / "bad\udcff.jpg").write_bytes(b"x")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DataError, match=r"bad\\udcff.jpg' is not valid UTF-8; rename the image"):
        names("more")


def test_paths_as_seen_from_the_gallery(tree: Path) -> None:
    """Forward slashes, relative: folder and gallery may be moved together."""
    (tree / "out").mkdir()
    (tree / "elsewhere" / "deep").mkdir(parents=True)
    (tree / "link").symlink_to(tree / "elsewhere" / "deep")
    paths = [Path("gallery/a/2.jpeg"), Path("odd.image")]
    assert relative_to_folder(paths, Path()) == ("gallery/a/2.jpeg", "odd.image")
    assert relative_to_folder(paths, Path("out")) == ("../gallery/a/2.jpeg", "../odd.image")
    for seen in relative_to_folder(paths, Path("link")):
        assert (tree / "link" / seen).is_file()

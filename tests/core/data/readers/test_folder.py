"""One's own images: what paths say by a pattern, and patterns that say nothing."""

from pathlib import Path

import pytest

from airnet_cli.core.data.readers.folder import Reading, parse_pattern, read
from airnet_cli.core.data.records import NamedImage
from airnet_cli.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("{person_id}_c{camera_id}_*", "0002_c1_000451.jpg", ("0002", "1")),
        ("{person_id}_c{camera_id}_*", "any/run_c9_x/eve_c1_7.png", ("eve", "1")),
        ("{person_id}_c{camera_id}_*", "0002_c1s1_000451_03.jpg", ("0002", "1s1")),
        ("{person_id}_c{camera_id}s*", "0002_c1s1_000451_03.jpg", ("0002", "1")),
        ("{person_id}_c{camera_id}", "0002_c1.jpg", ("0002", "1")),
        ("{person_id}_c{camera_id}.jpg", "0002_c1.jpg", ("0002", "1")),
        ("{person_id}_c{camera_id}.jpg", "0002_c1.png", None),
        ("{person_id}_c{camera_id}_*", "0002_1_1.jpg", None),
        ("{person_id}_c{camera_id}", "0002_c.jpg", None),
        ("c{camera_id}_*", "eve/c3_1.jpg", ("eve", "3")),
        ("c{camera_id}_*", "c3_1.jpg", None),
        ("{person_id}/{camera_id}/*", "eve/north/1.jpg", ("eve", "north")),
        ("{person_id}/{camera_id}/*", "eve/north/x/1.jpg", None),
        ("*/{person_id}-??", "monday/eve-01.jpg", ("eve", None)),
        ("{person_id}.*", "a.b.jpg", ("a", None)),
        ("({person_id})+*", "(eve)+1.jpg", ("eve", None)),
        (None, "eve/1.jpg", ("eve", None)),
        (None, "eve/north/1.jpg", ("eve", None)),
        (None, "1.jpg", None),
    ],
)
def test_what_a_path_says(
    tmp_path: Path, pattern: str | None, path: str, expected: tuple[str, str | None] | None
) -> None:
    """Person and camera, as text; or that it says nothing."""
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    found = read(tmp_path, None if pattern is None else parse_pattern(pattern))
    if expected is None:
        assert found == Reading(images=[], strange=[path])
    else:
        assert found == Reading(images=[NamedImage(path, *expected)], strange=[])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*_c1", "has no {person_id} and no {camera_id}"),
        ("", "has no {person_id}"),
        ("{person}_*", "has {person}, and there are {person_id} and {camera_id} only"),
        ("{}", "has {}, and there are"),
        ("{person_id}_{person_id}", "has {person_id} twice"),
        ("{person_id}{camera_id}", "does not say where {camera_id} begins"),
        ("*{person_id}", "does not say where {person_id} begins"),
        ("{person_id}_{camera_id", "has a brace without its partner"),
    ],
)
def test_patterns_that_say_nothing(pattern: str, message: str) -> None:
    """Each is one line with an example."""
    with pytest.raises(UsageError) as caught:
        parse_pattern(pattern)
    assert message in str(caught.value)
    assert "'{person_id}_c{camera_id}_*'" in str(caught.value)


def test_hidden_and_other_files_are_no_images(tmp_path: Path) -> None:
    """Whatever lies about is left alone, and the order is that of the paths."""
    for path in ("b/2.JPG", "a/1.png", "a/.1.png", ".a/1.png", "a/Thumbs.db", "a/notes.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert [image.path for image in read(tmp_path, None).images] == ["a/1.png", "b/2.JPG"]


@pytest.mark.parametrize(("folder", "message"), [(".", "no images below"), ("x", "not a folder")])
def test_nothing_to_read(tmp_path: Path, folder: str, message: str) -> None:
    """An empty folder and none are different mistakes."""
    with pytest.raises(DataError, match=message):
        read(tmp_path / folder, None)

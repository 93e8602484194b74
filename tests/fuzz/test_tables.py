"""Tables, lists and name patterns of strangers: every row as it stands there, or a line."""

import csv
import io
import os
import random
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from airnet_cli.core.data.readers import folder, msmt17, table
from airnet_cli.core.data.sources import list_images
from airnet_cli.errors import DataError

CELLS = ["1", "2", "0", "-1", "train", "query", "gallery", "a.png", "b/c.png", "", " ", "1.0", "x"]
ODD = ["a\nb.png", 'a"b.png', "a,b.png", "../a.png", "/a.png", "C:\\a", "a\0.png", "\ud7ff", "1_0"]
ODD += ["x" * 300, "x" * 9000, "x" * 140_000, "9" * 30, "\u0663", "=1+1", "-rf", "<script>", "''"]
HEADER = ["path", "person_id", "camera_id", "split"]


def odd_table(chance: random.Random) -> bytes:
    """Rows of good and odd cells, written as a table should be or not."""
    header = [*HEADER, "note"][: chance.choice((3, 4, 4, 4, 5))]
    if chance.random() < 0.2:
        chance.shuffle(header)
    odd = chance.choice((0, 0, 0, 0.02, 0.2))
    rows = []
    for number in range(chance.randrange(5)):
        of_split = chance.choice(("train", "query", "gallery"))
        good = {"path": f"{number}.png", "person_id": "3", "camera_id": "1", "split": of_split}
        row = [good.get(name, "") for name in header]
        row = [chance.choice(CELLS + ODD) if chance.random() < odd else cell for cell in row]
        rows.append(row[:-1] if chance.random() < odd else row + ["x"] * (chance.random() < odd))
    text = io.StringIO(newline="")
    if chance.random() < 0.9:
        ends = chance.choice(("\n", "\r\n", "\r"))
        csv.writer(text, lineterminator=ends).writerows([header, *rows])
    else:
        text.write("\n".join(",".join(row) for row in [header, *rows]))
    return text.getvalue().encode(chance.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))


@pytest.mark.parametrize("kind", ["values", "bytes"])
def test_odd_tables(tmp_path: Path, survive, damage, kind: str) -> None:
    """Whatever is accepted is what Python's own reader finds, row by row."""
    path = tmp_path / "few.csv"
    accepted = 0

    def attempt(chance: random.Random) -> None:
        nonlocal accepted
        content = odd_table(chance)
        path.write_bytes(content if kind == "values" else damage(content, chance))
        rows = table.read(path)
        text = path.read_bytes().decode("utf-8-sig")
        header, *lines = csv.reader(io.StringIO(text, newline=""))
        lines = [line for line in lines if "".join(line).strip()]
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows, strict=True):
            cells = dict(zip((name.strip() for name in header), line, strict=False))
            path_ = PurePosixPath(cells["path"].strip().replace("\\", "/"))
            assert row.record.path == str(path_)
            assert ".." not in path_.parts
            assert row.record.person_id == int(cells["person_id"])
            assert row.record.camera_id == int(cells["camera_id"])
            assert row.record.split == cells["split"].strip()
        accepted += 1

    survive(f"tables, {kind}", attempt)
    assert accepted > (100 if kind == "values" else 2)


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_odd_lists(tmp_path: Path, survive, damage, kind: str) -> None:
    """Lists and tables for embedding: the files that are named there, or a line."""
    names = ["a.png", "b c.png", "\u00fc.png", "'.png", "-rf.png", "\U0001f600.png", "d/e.png"]
    (tmp_path / "d").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "loop").symlink_to("loop")
    odd = ["loop/../a.png", "x" * 300, "d/../a.png", "loop", "d", "/a.png", "a\0.png", "../x.png"]
    path = tmp_path / f"list.{kind}"
    accepted = 0

    def attempt(chance: random.Random) -> None:
        nonlocal accepted
        chosen = chance.sample(names, chance.randrange(1, 5))
        chosen += [chance.choice(odd)] if chance.random() < 0.3 else []
        if kind == "csv":
            text = io.StringIO(newline="")
            csv.writer(text).writerows([["path", "id"], *zip(chosen, "123456", strict=False)])
            content = text.getvalue().encode()
        else:
            content = "\n".join(chosen).encode()
        is_whole = chance.random() < 0.5
        path.write_bytes(content if is_whole else damage(content, chance))
        found = list_images([path], must_exist=True)
        assert all(file.is_file() for file in found.paths)
        text_ = path.read_bytes().decode("utf-8-sig")
        assert all(file.name in text_ for file in found.paths)
        if is_whole:
            assert {file.resolve() for file in found.paths} == {
                (tmp_path / name).resolve() for name in chosen
            }
        if kind == "csv" and is_whole and len(set(chosen)) == len(chosen):
            ids = {(tmp_path / n).resolve(): i for n, i in zip(chosen, "123456", strict=False)}
            for file, number in zip(found.paths, found.columns["id"], strict=True):
                assert ids[file.resolve()] == number
        accepted += 1

    survive(f"lists, {kind}", attempt)
    assert accepted > 100


@pytest.mark.parametrize("name", ["list.txt", "table.csv"])
def test_pipes(tmp_path: Path, survive, name: str) -> None:
    """What would wait for ever is refused."""
    os.mkfifo(tmp_path / name)
    inputs = [tmp_path / name]
    assert survive("pipes", lambda _: list_images(inputs, must_exist=True), cases=1) == (0, 1)


def test_links_without_end(tmp_path: Path, survive) -> None:
    """Forty folders with two links to the next have a million million ways; loops have no end."""
    for number in range(40):
        (tmp_path / "tree" / f"{number}").mkdir(parents=True)
        for link in "ab":
            (tmp_path / "tree" / f"{number}" / link).symlink_to(f"../{number + 1}")
    (tmp_path / "tree" / "40").mkdir()
    for read in (
        lambda _: list_images([tmp_path / "tree" / "0"], must_exist=True),
        lambda _: folder.read(tmp_path / "tree" / "0", None),
    ):
        assert survive("links", read, cases=1) == (0, 1)


def test_deep_folders(tmp_path: Path, survive) -> None:
    """More folders in each other than Python's calls may nest."""
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        Path("a.png").write_bytes(b"x")
    finally:
        os.chdir(before)
    survive("deep", lambda _: list_images([tmp_path], must_exist=False), cases=1)
    survive("deep", lambda _: folder.read(tmp_path, None), cases=1)
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest would do it recursively


def slow_match(pattern: str, text: str) -> dict[str, str] | None:
    """As the documents say it: fields and `*` as short as they can be, from the left."""
    expression = re.escape(pattern)
    for sign, meaning in {
        r"\{person_id\}": "(?P<person_id>[^/]+?)",
        r"\{camera_id\}": "(?P<camera_id>[^/]+?)",
        r"\*": "[^/]*?",
        r"\?": "[^/]",
    }.items():
        expression = expression.replace(sign, meaning)
    match = re.fullmatch(expression, text)
    return None if match is None else match.groupdict()


def test_name_patterns(survive) -> None:
    """The quick matcher finds what the slow one finds, in the same places."""
    pieces = ["{person_id}", "{camera_id}", "*", "?", "a", "_", "_c", "/", "b_"]
    fits = 0

    def attempt(chance: random.Random) -> None:
        nonlocal fits
        text = "".join(chance.choices(pieces, k=chance.randrange(1, 7)))
        pattern = folder.parse_pattern(text)
        for _ in range(20):
            name = "".join(chance.choices("ab_c/", k=chance.randrange(1, 12)))
            match = pattern.expression.fullmatch(name)
            assert (None if match is None else match.groupdict()) == slow_match(text, name), name
            fits += match is not None

    survive("patterns", attempt)
    assert fits > 100


def test_a_pattern_that_takes_years(survive) -> None:
    """Twenty stars against a long name."""
    pattern = folder.parse_pattern("{person_id}" + "*a" * 20 + "b")
    name = PurePosixPath("a" * 250 + ".png")
    assert survive("stars", lambda _: pattern.match(name), cases=1) == (1, 0)


def test_odd_msmt17_lists(tmp_path: Path, survive, damage) -> None:
    """Broken lists: the images of the good ones, or a problem more than of them, or a line."""
    lists: dict[str, list[str]] = {}
    for name, (part, _) in msmt17.LISTS.items():
        folder_ = tmp_path / msmt17.FOLDERS["V1"][part]
        lists[name] = []
        for person in range(4):
            number = len(lists[name]) + 10 * list(msmt17.LISTS).index(name)
            image = f"{person:04}/{person:04}_{number:03}_0{person + 1}_morning_{number}.jpg"
            (folder_ / image).parent.mkdir(parents=True, exist_ok=True)
            (folder_ / image).write_bytes(b"x")
            lists[name].append(f"{image} {person}\n")
        (tmp_path / name).write_text("".join(lists[name]))
    layout = msmt17.find_layout(tmp_path)
    meant = msmt17.read(layout, lists="train+val")
    accepted = 0

    def attempt(chance: random.Random) -> None:
        nonlocal accepted
        name = chance.choice(list(lists))
        good = "".join(lists[name]).encode()
        (tmp_path / name).write_bytes(damage(good, chance))
        try:
            found = msmt17.read(layout, lists="train+val")
        finally:
            (tmp_path / name).write_bytes(good)
        assert set(found.records) == set(meant.records) or found.problems != meant.problems
        accepted += found.problems == meant.problems

    survive("MSMT17's lists", attempt)
    assert accepted > 0


def test_a_list_that_is_no_file(tmp_path: Path) -> None:
    """A pipe under the name of a list is a list that is missing."""
    (tmp_path / "train").mkdir()
    os.mkfifo(tmp_path / "list_train.txt")
    (tmp_path / "list_val.txt").write_text("")
    with pytest.raises(DataError, match=r"list_train\.txt is missing"):
        msmt17.read(msmt17.find_layout(tmp_path), lists="train+val")

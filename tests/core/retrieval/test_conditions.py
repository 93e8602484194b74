"""Conditions on a gallery's table: how they are read and what fulfils them."""

import pytest

from airnet_cli.core.retrieval.conditions import Condition, allowed_rows, parse_condition
from airnet_cli.errors import DataError, UsageError

COLUMNS = {
    "path": ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"),
    "camera_id": ("1", "3", "03", "10", ""),
    "day": ("2026-01-09", "2026-01-10", "2025-12-31", "", "2026-02-01"),
    "blur": ("0.5", "1e-3", "-2", "3.0", "none"),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("camera_id!=3", ("camera_id", "!=", "3")),
        ("camera_id = 3", ("camera_id", "=", "3")),
        ("camera_id==3", ("camera_id", "=", "3")),
        ("blur<=.5", ("blur", "<=", ".5")),
        ("blur >= -2", ("blur", ">=", "-2")),
        ("frame no>7", ("frame no", ">", "7")),
        ("day<2026-01-10", ("day", "<", "2026-01-10")),
        ("note=a=b", ("note", "=", "a=b")),
        ("note=", ("note", "=", "")),
    ],
)
def test_reading(text, expected):
    """Column, operator and value, with or without spaces."""
    assert parse_condition(text) == Condition(*expected)


@pytest.mark.parametrize("text", ["", "camera_id", "=3", "camera_id!3", "a=!3", "a><3", "a===3"])
def test_what_is_no_condition(text):
    """Anything else is refused, with an example of what would be right."""
    with pytest.raises(UsageError, match="as in camera_id!=3"):
        parse_condition(text)


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        pytest.param(["camera_id!=3"], [0, 3, 4], id="numbers, however written; empty differs"),
        pytest.param(["camera_id=3"], [1, 2], id="equal"),
        pytest.param(["camera_id<10"], [0, 1, 2], id="9 < 10 as numbers; empty is not smaller"),
        pytest.param(["camera_id>=3.0"], [1, 2, 3], id="at least"),
        pytest.param(["blur<=0.001"], [1, 2], id="decimals"),
        pytest.param(["blur!=3"], [0, 1, 2, 4], id="3.0 is 3"),
        pytest.param(["day>=2026-01-10"], [1, 4], id="dates as text"),
        pytest.param(["path!=b.jpg"], [0, 2, 3, 4], id="text"),
        pytest.param(["day="], [3], id="empty"),
        pytest.param(["camera_id!=3", "day!="], [0, 4], id="all of several"),
        pytest.param(["camera_id>1", "camera_id<10"], [1, 2], id="a range"),
    ],
)
def test_what_fulfils(texts, rows):
    """Numbers are compared as numbers, everything else as text; all conditions must hold."""
    allowed = allowed_rows(COLUMNS, [parse_condition(text) for text in texts])
    assert allowed.nonzero()[0].tolist() == rows


def test_large_numbers_are_told_apart():
    """Integers beyond the precision of floats are compared exactly."""
    columns = {"frame": ("9007199254740992", "9007199254740993")}
    condition = parse_condition("frame=9007199254740993")
    assert allowed_rows(columns, [condition]).tolist() == [False, True]


def test_a_column_that_is_not_there():
    """The error names the columns that are."""
    with pytest.raises(UsageError, match="no column camera; it has path, camera_id, day, blur"):
        allowed_rows(COLUMNS, [parse_condition("camera=3")])


def test_nothing_left():
    """The error names the conditions and what the columns hold."""
    there = r"camera_id>10; there is camera_id 1, 3, 03, 10, \(empty\)$"
    with pytest.raises(DataError, match=there):
        allowed_rows(COLUMNS, [parse_condition("camera_id>10")])
    many = {"n": tuple(map(str, range(20)))}
    with pytest.raises(DataError, match="there is n 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"):
        allowed_rows(many, [parse_condition("n>20")])

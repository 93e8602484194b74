"""Conditions on the columns of a gallery's table, such as `camera_id!=3`: which rows may be found.

Numbers are compared as numbers (`3` equals `03` and `3.0`), everything else as text, so that dates
such as 2026-11-23 can be compared too. Where the condition names a number, a cell that is none
(empty, say) differs from it, and is neither smaller nor larger.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.errors import DataError, UsageError

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
"""The longer ones first: `<=` is not `<` and a value that begins with `=`."""

SHOWN = 8
"""Values of a column that an error lists."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of a column with a value."""

    column: str
    operator: str
    """One of `OPERATORS`."""
    value: str

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{self.value}"


def parse_condition(text: str) -> Condition:
    """Read a condition as people type it.

    >>> parse_condition("camera_id != 3")
    Condition(column='camera_id', operator='!=', value='3')

    Raises:
        UsageError: it is not a column, an operator and a value.
    """
    found = re.fullmatch(r"\s*([^!<>=]+?)\s*(!=|<=|>=|==|=|<|>)\s*(.*?)\s*", text, re.DOTALL)
    if found is None or (found[3] and found[3][0] in "!<>="):
        raise UsageError(
            f"condition '{text}' is not a column, one of {' '.join(OPERATORS)} and a value, as in "
            "camera_id!=3"
        )
    return Condition(found[1], "=" if found[2] == "==" else found[2], found[3])


def allowed_rows(
    columns: Mapping[str, Sequence[str]], conditions: Sequence[Condition]
) -> npt.NDArray[np.bool_]:
    """Which rows (N,) of the table fulfil all conditions.

    Args:
        columns: N texts for each column; at least one column.
        conditions: at least one.

    Raises:
        UsageError: a condition names a column that is not there.
        DataError: no row is left.
    """
    allowed = np.ones(len(next(iter(columns.values()))), np.bool_)
    for condition in conditions:
        if condition.column not in columns:
            raise UsageError(
                f"condition '{condition}': the gallery's table has no column {condition.column}; "
                f"it has {', '.join(columns)}"
            )
        fulfils = _comparison(condition)
        cells = columns[condition.column]
        allowed &= np.fromiter((fulfils(cell) for cell in cells), np.bool_, len(cells))
    if not allowed.any():
        raise DataError(
            f"no row of the gallery fulfils {' and '.join(map(str, conditions))}; there is "
            + "; ".join(
                _values(name, columns[name]) for name in dict.fromkeys(c.column for c in conditions)
            )
        )
    return allowed


def _comparison(condition: Condition) -> Callable[[str], bool]:
    compare = OPERATORS[condition.operator]
    number = parse_number(condition.value)
    if number is None:
        return lambda cell: compare(cell.strip(), condition.value)

    def fulfils(cell: str) -> bool:
        value = parse_number(cell)
        return condition.operator == "!=" if value is None else compare(value, number)

    return fulfils


def parse_number(text: str) -> int | float | None:
    """A plain decimal number; Python compares its integers and floats exactly."""
    text = text.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,400}", text):
        return int(text)
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        return float(text)
    return None


def _values(name: str, cells: Sequence[str]) -> str:
    different = list(dict.fromkeys(cells))
    listed = ", ".join(cell or "(empty)" for cell in different[:SHOWN])
    more = f" and {len(different) - SHOWN:,} more" if len(different) > SHOWN else ""
    return f"{name} {listed}{more}"

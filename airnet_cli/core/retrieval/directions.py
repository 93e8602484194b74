"""Which vectors have a direction, so that a cosine with them means something."""

from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.errors import DataError

SHORTEST_SQUARED = 1e-30
"""Squared length under which a vector's direction is lost in float32 products."""

LARGEST_SQUARED = float(np.finfo(np.float32).max)


def check_directions(squared: npt.NDArray[np.floating[Any]], rows: npt.NDArray[np.int64]) -> None:
    """Refuse the first of the gallery's `rows` (B,) whose squared length (B,) gives it none.

    Raises:
        DataError: there is such a row.
    """
    has_direction = (squared >= SHORTEST_SQUARED) & (squared <= LARGEST_SQUARED)
    for row in rows[~has_direction][:1]:
        raise DataError(
            f"gallery row {row} (from 0) has no direction: zero, NaN, infinity or values too large "
            "for float32; embed the gallery again, or leave that row out"
        )

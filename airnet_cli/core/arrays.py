"""`.npy` files that anyone may have written, mapped into memory: numbers in full, or an error.

NumPy's own reader takes a file that is longer than its header says (a changed digit of the width
then shifts every row), reads a header of any length at once, and lets through whatever Python's
parser raises on a broken one. Nothing is unpickled.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

LARGEST_HEADER = 2**16
"""Bytes: NumPy writes 128."""


def map_array(path: Path, *, mode: Literal["r", "c"]) -> npt.NDArray[Any]:
    """The array in `path`: read-only ("r"), or with changes that stay in memory ("c").

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no array of plain values, or is cut off or too long; with the reason.
        OSError: it can't be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
        if header > LARGEST_HEADER:
            raise ValueError(f"its header has {header:,} bytes")
        start = file.tell() + header
    try:
        with warnings.catch_warnings():  # of Python's parser, and of headers that Python 2 wrote
            warnings.simplefilter("ignore")
            array = np.lib.format.open_memmap(path, mode=mode)
    except (ValueError, OSError):
        raise
    # Python's parser and NumPy's types: SyntaxError, TokenError, TypeError, MemoryError ...
    except Exception as error:
        raise ValueError(f"its header is broken: {error or type(error).__name__}") from None
    size, expected = path.stat().st_size, start + array.nbytes
    if size != expected:
        raise ValueError(
            f"it has {size:,} bytes, and {expected:,} go with the shape {array.shape} of "
            f"{array.dtype} that it says"
        )
    return array

"""Products of int8 matrices: which ways there are on this machine, and which is the quickest.

- `numkong`: its public kernels (the extra `ann`); exact, int32.
- `torch`: `torch._int_mm`, exact, int32; the quickest where the processor has int8 instructions
  (VNNI) and torch uses them, and far slower than float32 where not. Its name says that it may go.
- `bfloat16`: torch's product; int8 is exact in it, the result is rounded. Only where the processor
  has bfloat16 of its own.
- `float32`: NumPy's product of pieces made float32 in the cache. Everywhere.

Nothing is taken on trust: each is held against NumPy's int64 product of a small case, with the
largest sums there are and rows that lie apart in memory, and timed; one that is wrong, missing or
slower is not used.

Letters: R rows, Q queries, d columns.
"""

import functools
import importlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from airnet_cli.core.runtime import has_native_bfloat16

Integers = npt.NDArray[np.int8]
Product = npt.NDArray[np.float32]

KernelName = Literal["numkong", "torch", "bfloat16", "float32"]

WIDEST = 2**31 // 127**2
"""Columns whose products int32 holds whatever they are."""

FEW = 8
"""Queries up to which reading the rows is most of the work."""

WORTHWHILE_SHARE = 0.7
"""Of the time of floats, that a kernel may take for many queries."""

PIECE_VALUES = 2**19
"""Of a piece that is made float32 or bfloat16: what is done with it finds it in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """One way to multiply."""

    name: KernelName
    multiply: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Product]
    """Rows (R, d), whose columns are adjacent, and queries (Q, d) to (R, Q)."""
    rounding: float
    """Of the result, as a share of it."""
    adding: float
    """Of each of the d additions, as a share of the product of the two vectors' lengths."""
    most_shared: int
    """Queries up to which it works in the caller's thread, so that several may share the rows."""

    def threads(self, num_queries: int) -> int:
        """Among how many threads the rows are to be shared out."""
        return torch.get_num_threads() if num_queries <= self.most_shared else 1

    def error(self, width: int) -> float:
        """How wrong a result may be, as a share of the product of the two vectors' lengths."""
        return self.rounding + self.adding * width


def choose_kernel(width: int, num_queries: int) -> Kernel:
    """The quickest kernel for products with rows of `width` columns and so many queries."""
    if width > WIDEST:
        return _float32()
    return _quickest(num_queries <= FEW)


def is_worthwhile(width: int, num_queries: int) -> bool:
    """Whether products with int8 rows of `width` columns take less time than with float32 rows.

    Of a few queries always: reading the rows is the work. Of many where the kernel is quicker than
    NumPy's product of floats, by more than what is done besides with errors and doubtful rows.
    """
    return num_queries <= FEW or _share_of_floats(width <= WIDEST) < WORTHWHILE_SHARE


def kernel_of(name: KernelName) -> Kernel:
    """The kernel of that name.

    Raises:
        ImportError, AttributeError: what it is made of is not installed.
    """
    return _MAKERS[name]()


@functools.cache
def _quickest(is_few: bool) -> Kernel:
    """Right for all of a small case, and the quickest at it; float32 where it is a draw."""
    rows, queries, expected, lengths = _case(FEW // 4 if is_few else 8 * FEW)
    best, fastest = _float32(), _seconds(_float32(), rows, queries)
    names: Sequence[KernelName] = ("numkong", "torch", "bfloat16")
    for name in names:
        if name == "bfloat16" and not has_native_bfloat16(torch.device("cpu")):
            continue
        try:
            kernel = kernel_of(name)
            wrong = np.abs(kernel.multiply(rows, queries) - expected)
            # 2^-23: int32 becomes float32 at the end.
            is_right = (wrong <= (kernel.error(rows.shape[1]) + 2.0**-23) * lengths).all()
        except (ImportError, AttributeError, RuntimeError, TypeError, ValueError):
            continue  # missing, or of another version
        if is_right and (seconds := _seconds(kernel, rows, queries)) < fastest:
            best, fastest = kernel, seconds
    return best


@functools.cache
def _share_of_floats(has_choice: bool) -> float:
    """The quickest kernel's time for many queries, as a share of that of the product of floats."""
    rows, queries, *_ = _case(8 * FEW)
    kernel = _quickest(False) if has_choice else _float32()
    floats = Kernel("float32", lambda left, right: left @ right.T, 0.0, 0.0, 0)
    wide, wide_queries = rows.astype(np.float32), queries.astype(np.float32)
    return _seconds(kernel, rows, queries) / _seconds(floats, wide, wide_queries)


def _case(
    num_queries: int,
) -> tuple[Integers, Integers, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Rows, queries, their product by int64, and the products of their lengths."""
    random = np.random.default_rng(0)
    rows = random.integers(-127, 128, (128, 2099), np.int8)[:, 3:2051]  # neither whole nor aligned
    queries = random.integers(-127, 128, (num_queries, 2048), np.int8)
    rows[:2], queries[0] = 127, 127  # sums that 16 bits can't hold
    rows[1] = -127
    wide, wide_queries = rows.astype(np.int64), queries.astype(np.int64)
    squared, query_squared = (wide**2).sum(axis=1), (wide_queries**2).sum(axis=1)
    expected = (wide @ wide_queries.T).astype(np.float64)
    return rows, queries, expected, np.sqrt(np.outer(squared, query_squared))


def _seconds(kernel: Kernel, rows: npt.NDArray[Any], queries: npt.NDArray[Any]) -> float:
    """The fastest of three turns, after one to warm up; a thread's share, where several share."""
    turns = []
    for _ in range(4):
        started = time.perf_counter()
        kernel.multiply(rows, queries)
        turns.append(time.perf_counter() - started)
    return min(turns[1:]) / kernel.threads(len(queries))


def _numkong() -> Kernel:
    numkong: Any = importlib.import_module("numkong")

    def multiply(rows: Integers, queries: Integers) -> Product:
        if len(queries) <= FEW:
            return np.asarray(numkong.cdist(rows, queries, "dot")).astype(np.float32)
        packed = numkong.dots_pack(np.ascontiguousarray(queries), dtype="int8")
        return np.asarray(numkong.dots_packed(rows, packed)).astype(np.float32)

    return Kernel("numkong", multiply, 0.0, 0.0, 2**31)


def _torch() -> Kernel:
    product: Any = torch._int_mm

    def multiply(rows: Integers, queries: Integers) -> Product:
        found: Product = product(_tensor(rows), _tensor(queries).T).numpy().astype(np.float32)
        return found

    return Kernel("torch", multiply, 0.0, 0.0, 0)


def _bfloat16() -> Kernel:
    def multiply(rows: Integers, queries: Integers) -> Product:
        few = _tensor(queries).to(torch.bfloat16).T
        found = np.empty((len(rows), len(queries)), np.float32)
        for begin, end in _pieces(rows):
            piece = _tensor(rows[begin:end]).to(torch.bfloat16)
            found[begin:end] = (piece @ few).float().numpy()
        return found

    # 8 bits of a number; sums are float32's.
    return Kernel("bfloat16", multiply, 2.0**-8, 2.0**-24, 0)


def _float32() -> Kernel:
    def multiply(rows: Integers, queries: Integers) -> Product:
        vectors = queries.astype(np.float32)
        room = np.empty((max(1, PIECE_VALUES // rows.shape[1]), rows.shape[1]), np.float32)
        found = np.empty((len(rows), len(queries)), np.float32)
        for begin, end in _pieces(rows):
            piece = room[: end - begin]
            np.copyto(piece, rows[begin:end], casting="unsafe")
            if len(queries) == 1:
                found[begin:end, 0] = piece @ vectors[0]
            else:
                np.matmul(piece, vectors.T, out=found[begin:end])
        return found

    return Kernel("float32", multiply, 0.0, 2.0**-24, FEW)


def _pieces(rows: Integers) -> list[tuple[int, int]]:
    step = max(1, PIECE_VALUES // rows.shape[1])
    return [(begin, min(begin + step, len(rows))) for begin in range(0, len(rows), step)]


def _tensor(values: Integers) -> torch.Tensor:
    with warnings.catch_warnings():  # that a map can't be written to: nobody does
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return torch.from_numpy(values)


_MAKERS: dict[KernelName, Callable[[], Kernel]] = {
    "numkong": _numkong,
    "torch": _torch,
    "bfloat16": _bfloat16,
    "float32": _float32,
}

"""Search in a mapped gallery, beside NumPy's product and argpartition on the array in memory.

The rival has its rows at length 1 already, and needs no exact order among equal scores; ours takes
every row's length in passing. NumPy has no quick product of float16: there the rival makes float32
of the same array, block by block. A second row sets float16 beside a float32 copy of it in memory,
which takes twice the room.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from airnet_cli.core.retrieval.search import SearchResult, search
from benchmarks.measure import OPENBLAS_REST, Row, Sizes, apart, in_turn

K = 10


def rows(sizes: Sizes) -> Iterator[Row]:
    """1 and 100 queries, float32 and float16."""
    num_rows, dimensions = sizes.pick((100_000, 6144), (8_000, 6144))
    with tempfile.TemporaryDirectory() as folder:
        unit = _write(Path(folder), num_rows, dimensions)
        for dtype in ("float32", "float16"):
            file = str(Path(folder) / f"{dtype}.npy")
            mapped = np.load(file, mmap_mode="r")
            for num_queries in (1, 100):
                queries = draw_queries(num_queries, dimensions)
                expected, found = in_memory(queries, unit), best(mapped, queries)
                if dtype == "float32":
                    same = sum(
                        len(set(a) & set(b)) for a, b in zip(expected, found.rows, strict=True)
                    )
                    assert same >= 0.99 * expected.size, "other rows than NumPy's"
                memory = apart(open_both, search_both, file, num_queries, is_mapped=True)
                for rival, array in rivals(unit, dtype).items():
                    seconds, rival_seconds = in_turn(
                        partial(best, mapped, queries),
                        partial(in_memory, queries, array),
                        turns=5,
                        pause=OPENBLAS_REST,
                    )
                    yield Row(
                        path="match",
                        case=f"{num_queries} in {num_rows:,} x {dimensions:,} {dtype}, mapped",
                        rival=rival,
                        seconds=seconds,
                        rival_seconds=rival_seconds,
                        target="at most 1.0",
                        memory_mb=memory.memory_mb,
                        note=""
                        if memory.unmapped_mb is None
                        else f"of it {memory.unmapped_mb:,.0f} MiB are not the mapped file's",
                    )


def rivals(unit: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """What NumPy is given, rows of length 1 in memory, by what the table calls it."""
    single = {"NumPy product and argpartition, float32 rows of length 1 in memory": unit}
    if dtype == "float32":
        return single
    halves = unit.astype(np.float16)
    return {"NumPy, float16 rows in memory made float32 block by block": halves, **single}


def _write(folder: Path, num_rows: int, dimensions: int) -> np.ndarray:
    """The gallery in both types; and its rows at length 1, in memory."""
    gallery = np.empty((num_rows, dimensions), np.float32)
    random = np.random.default_rng(0)
    for begin in range(0, num_rows, 1024):
        part = gallery[begin : begin + 1024]
        random.standard_normal(out=part, dtype=np.float32)
    np.save(folder / "float32.npy", gallery)
    halves = np.lib.format.open_memmap(
        folder / "float16.npy", mode="w+", dtype=np.float16, shape=gallery.shape
    )
    for begin in range(0, num_rows, 1024):
        part = gallery[begin : begin + 1024]
        halves[begin : begin + 1024] = part
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    halves.flush()
    return gallery


def draw_queries(number: int, dimensions: int) -> np.ndarray:
    """Queries (Q, D)."""
    return np.random.default_rng(1).standard_normal((number, dimensions), dtype=np.float32)


def best(gallery: np.ndarray, queries: np.ndarray) -> SearchResult:
    """Ours."""
    return search(queries=queries, gallery_embeddings=gallery, k=K)


def in_memory(queries: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The rival: rows (Q, K), in no order."""
    if unit.dtype == np.float32:
        cosines = queries @ unit.T
    else:
        cosines = np.empty((len(queries), len(unit)), np.float32)
        for begin in range(0, len(unit), 1024):
            block = unit[begin : begin + 1024].astype(np.float32)
            cosines[:, begin : begin + 1024] = queries @ block.T
    return np.argpartition(cosines, -K, axis=1)[:, -K:]


def open_both(file: str, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The mapped gallery and queries, in another process."""
    mapped = np.load(file, mmap_mode="r")
    return mapped, draw_queries(num_queries, mapped.shape[1])


def search_both(opened: tuple[np.ndarray, np.ndarray]) -> SearchResult:
    """Ours, on what `open_both` opened."""
    return best(*opened)

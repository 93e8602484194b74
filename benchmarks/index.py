"""Search by an int8 index, beside our own search in floats of the same mapped gallery.

The gallery is drawn to look like one: people of twenty pictures, whose vectors have 128 degrees of
freedom and some noise, so that two people are now and then alike (cosines of about -0.4 to 0.4) and
two pictures of one person have cosines of 0.5 to 0.8. Both sides give the same rows and scores,
which is checked. How much faster int8 is hangs on the processor: its int8 instructions make the
product of many queries quicker; with one query, reading a quarter does. The case names the kernel.

Noise without people (6,144 independent normal numbers) is the worst case: all cosines are within a
few hundredths, which int8 alone can't tell apart, and many rows are compared twice.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from airnet_cli.core.retrieval.quantized import QuantizedRows, quantize
from airnet_cli.core.retrieval.search import SearchResult, search
from benchmarks.measure import OPENBLAS_REST, Row, Sizes, in_turn, peak_memory_mb

K = 10
FREEDOM = 128
"""Dimensions in which people differ."""
PICTURES = 20
"""Of each person."""
AT_ONCE = 1024


def rows(sizes: Sizes) -> Iterator[Row]:
    """1 and 100 queries."""
    num_rows, dimensions = sizes.pick((100_000, 6144), (8_000, 6144))
    turns = sizes.pick(3, 5)
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), num_rows, dimensions)
        gallery, index = open_files(folder)
        for num_queries in (1, 100):
            queries = draw_queries(num_queries, num_rows, dimensions)
            found, expected = by_index(gallery, index, queries), in_floats(gallery, queries)
            assert np.array_equal(found.rows, expected.rows), "other rows than the search in floats"
            assert np.array_equal(found.scores, expected.scores), "other scores"
            seconds, rival_seconds = in_turn(
                partial(by_index, gallery, index, queries),
                partial(in_floats, gallery, queries),
                turns=turns,
                pause=OPENBLAS_REST,
            )
            yield Row(
                path="index",
                case=f"{num_queries} in {num_rows:,} x {dimensions:,}, {found.kernel}",
                rival="our search in floats",
                seconds=seconds,
                rival_seconds=rival_seconds,
                target="at least 3" if num_queries == 1 else "at least 4",
                ratio_is="rival / ours",
                memory_mb=peak_memory_mb(
                    open_all, search_all, folder, num_queries, num_rows, dimensions
                ),
                note=f"{found.in_floats} queries needed floats; memory has the mapped pages in it",
            )


def _write(folder: Path, num_rows: int, dimensions: int) -> None:
    """The gallery and its index, as plain files."""
    third = dimensions // 3
    parts = tuple(slice(begin, begin + third) for begin in range(0, dimensions, third))
    shapes = {
        "gallery": (np.float32, dimensions),
        "values": (np.int8, dimensions),
        "sizes": (np.float32, 1 + 2 * len(parts)),
    }
    files = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(num_rows, width)
        )
        for name, (dtype, width) in shapes.items()
    }
    for begin in range(0, num_rows, AT_ONCE):
        here = np.arange(begin, min(begin + AT_ONCE, num_rows))
        drawn = draw(here, dimensions, seed=1)
        files["gallery"][here] = drawn
        files["values"][here], files["sizes"][here] = quantize(drawn, parts)
    for file in files.values():
        file.flush()


def draw(rows: np.ndarray, dimensions: int, *, seed: int) -> np.ndarray:
    """Pictures (B, D) of the people of `rows`; another seed draws others of the same people."""
    space = np.random.default_rng(0).standard_normal((FREEDOM, dimensions), dtype=np.float32)
    people = np.stack(
        [np.random.default_rng((2, person)).standard_normal(FREEDOM) for person in rows // PICTURES]
    )
    random = np.random.default_rng((seed, int(rows[0])))
    # Some pictures are plainer than others.
    unlike = random.uniform(0.4, 0.7, (len(rows), 1))
    views = people + unlike * random.standard_normal((len(rows), FREEDOM))
    noise = random.standard_normal((len(rows), dimensions), dtype=np.float32)
    return (views.astype(np.float32) @ space) + 4 * noise


def draw_queries(number: int, num_rows: int, dimensions: int) -> np.ndarray:
    """Queries (Q, D): further pictures of people of the gallery."""
    chosen = np.sort(np.random.default_rng(3).integers(0, num_rows, number))
    return draw(chosen, dimensions, seed=4)


def open_files(folder: str) -> tuple[np.ndarray, QuantizedRows]:
    """The gallery and its index, mapped."""
    gallery, values, sizes = (
        np.load(Path(folder) / f"{name}.npy", mmap_mode="r")
        for name in ("gallery", "values", "sizes")
    )
    third = gallery.shape[1] // 3
    parts = tuple(slice(begin, begin + third) for begin in range(0, gallery.shape[1], third))
    return gallery, QuantizedRows(values, np.array(sizes), parts)


def by_index(gallery: np.ndarray, index: QuantizedRows, queries: np.ndarray) -> SearchResult:
    """Ours."""
    return search(queries=queries, gallery_embeddings=gallery, k=K, quantized=index)


def in_floats(gallery: np.ndarray, queries: np.ndarray) -> SearchResult:
    """The rival, also ours."""
    return search(queries=queries, gallery_embeddings=gallery, k=K)


Opened = tuple[np.ndarray, QuantizedRows, np.ndarray]


def open_all(folder: str, num_queries: int, num_rows: int, dimensions: int) -> Opened:
    """Files and queries, in another process."""
    return *open_files(folder), draw_queries(num_queries, num_rows, dimensions)


def search_all(opened: Opened) -> SearchResult:
    """Ours, on what `open_all` opened."""
    return by_index(*opened)

"""Evaluation at the sizes of Market-1501 and MSMT17, beside the matrix product that it can't avoid.

The features are synthetic: a direction for each person, and noise, so that right answers are
mostly, but not always, near.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from airnet_cli.core.retrieval.metrics import RetrievalScores, evaluate_retrieval
from airnet_cli.core.retrieval.protocol import LabelledFeatures, Labels
from benchmarks.measure import Row, Sizes, in_turn, peak_memory_mb

BLOCK_BYTES = 96 * 2**20
"""Of the rival's products."""


@dataclass(frozen=True)
class Problem:
    """Features and labels of a retrieval problem."""

    query: LabelledFeatures
    gallery: LabelledFeatures


def rows(sizes: Sizes) -> Iterator[Row]:
    """Each data set's size with 2,048 and 6,144 dimensions."""
    cases = sizes.pick(
        [("Market-1501 size", 3368, 15913, 750, 6), ("MSMT17 size", 11659, 82161, 3060, 15)],
        [
            ("an eighth of Market-1501", 421, 1989, 94, 6),
            ("an eighth of MSMT17", 1457, 10270, 380, 15),
        ],
    )
    for name, *numbers in cases:
        for dimensions in sizes.pick((2048, 6144), (2048,)):
            problem = draw(*numbers, dimensions)
            large = sizes.name == "full" and numbers[1] > 50_000
            seconds, rival_seconds = in_turn(
                partial(score, problem), partial(products, problem), turns=1 if large else 3
            )
            yield Row(
                path="evaluate",
                case=f"{name}: {numbers[0]:,} x {numbers[1]:,} x {dimensions:,}",
                rival="its blocked matrix product",
                seconds=seconds,
                rival_seconds=rival_seconds,
                target="at most 1.25",
                memory_mb=peak_memory_mb(draw, score, *numbers, dimensions),
                memory_target_mb=300,
            )


def draw(queries: int, gallery: int, people: int, cameras: int, dimensions: int) -> Problem:
    """Features and labels, the same for the same sizes."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((people + 1, dimensions), dtype=np.float32)

    def features(shown: np.ndarray) -> LabelledFeatures:
        values = random.standard_normal((len(shown), dimensions), dtype=np.float32)
        values *= 4 / np.sqrt(2)
        for begin in range(0, len(shown), 1024):  # never a second matrix of the whole size
            values[begin : begin + 1024] += centres[shown[begin : begin + 1024]]
        return LabelledFeatures(values, Labels(shown, random.integers(1, cameras + 1, len(shown))))

    query = features(np.arange(queries) % people + 1)
    return Problem(query, features(random.integers(0, people + 1, gallery)))  # 0: distractors


def score(problem: Problem) -> RetrievalScores:
    """Ours."""
    return evaluate_retrieval(problem.query, problem.gallery, metric="cosine")


def products(problem: Problem) -> None:
    """The limit: all products of queries and gallery, in blocks, into memory that is there.

    NumPy's, which ours are made of on a CPU.
    """
    queries, gallery = problem.query.embeddings, problem.gallery.embeddings.T
    size = max(1, BLOCK_BYTES // (4 * gallery.shape[1]))
    block = np.empty((min(size, len(queries)), gallery.shape[1]), np.float32)
    for begin in range(0, len(queries), size):
        part = queries[begin : begin + size]
        np.matmul(part, gallery, out=block[: len(part)])

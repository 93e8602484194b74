"""Re-ranking by k-reciprocal neighbours, beside the published dense algorithm written in NumPy.

At MSMT17's size that would take 35 GB for each of several matrices. There ours stands beside half
of the product of all pictures with each other, which it can't avoid; a tenth of that is measured.
"""

import time
from collections.abc import Iterator

import numpy as np

from airnet_cli.core.retrieval.rerank import (
    Reranking,
    k_reciprocal_blocks,
    k_reciprocal_distances,
)
from benchmarks.evaluate import draw
from benchmarks.measure import Row, Sizes, apart, in_turn, peak_memory_mb

Pair = tuple[np.ndarray, np.ndarray]


def rows(sizes: Sizes) -> Iterator[Row]:
    """1,000 + 5,000 images, and as many as MSMT17 has; in quick sizes a fifth and an eighth."""
    queries, gallery, people = sizes.pick((1000, 5000, 250), (200, 1000, 50))
    dimensions = sizes.pick(2048, 512)
    pair = features(queries, gallery, people, dimensions)
    # All but a few: where two neighbours change places by a rounding, a distance jumps.
    assert np.mean(np.abs(ours(pair) - dense(pair)) <= 1e-5) > 0.999, "other distances"
    seconds, rival_seconds = in_turn(lambda: ours(pair), lambda: dense(pair), turns=2)
    yield Row(
        path="rerank",
        case=f"{queries:,} + {gallery:,} x {dimensions:,}",
        rival="the published dense algorithm in NumPy",
        seconds=seconds,
        rival_seconds=rival_seconds,
        ratio_is="rival / ours",
        target="at least 4",
        memory_mb=peak_memory_mb(features, ours, queries, gallery, people, dimensions),
    )
    for numbers in [sizes.pick((11_659, 82_161, 3060, 2048), (1_457, 10_270, 380, 2048))]:
        measured = apart(features, in_blocks, *numbers)
        total, dimensions = numbers[0] + numbers[1], numbers[3]
        yield Row(
            path="rerank",
            case=f"{numbers[0]:,} + {numbers[1]:,} x {dimensions:,}",
            rival="half of the product of all pictures",
            seconds=measured.seconds,
            rival_seconds=half_product(total, dimensions),
            target="memory counts: under 6 GB, features included",
            memory_mb=measured.memory_mb,
            memory_target_mb=6e9 / 2**20 - 4 * total * dimensions / 2**20,
        )


def features(queries: int, gallery: int, people: int, dimensions: int) -> Pair:
    """Synthetic features of people."""
    problem = draw(queries, gallery, people, 6, dimensions)
    return problem.query.embeddings, problem.gallery.embeddings


def ours(pair: Pair) -> np.ndarray:
    """All distances."""
    return k_reciprocal_distances(queries=pair[0], gallery=pair[1], reranking=Reranking())


def in_blocks(pair: Pair) -> None:
    """All distances, never all at a time."""
    for _ in k_reciprocal_blocks(queries=pair[0], gallery=pair[1], reranking=Reranking()):
        pass


def half_product(total: int, dimensions: int) -> float:
    """Seconds, from a tenth of it: half of the columns with a tenth of the rows."""
    values = np.ones((total, dimensions), np.float32)
    rows, columns = values[: total // 10], values[: total // 2]
    block = np.empty((len(rows), 256), np.float32)
    started = time.perf_counter()
    for begin in range(0, len(columns), 256):
        part = columns[begin : begin + 256]
        np.matmul(rows, part.T, out=block[:, : len(part)])
    return 10 * (time.perf_counter() - started)


def dense(pair: Pair, *, k1: int = 20, k2: int = 6, weight: float = 0.3) -> np.ndarray:
    """Zhong et al. 2017 as published: several N x N matrices, a loop over the images."""
    values = np.concatenate(pair)
    values = values / np.linalg.norm(values, axis=1, keepdims=True)
    original = 2 - 2 * values @ values.T
    original = original / original.max(axis=1, keepdims=True)
    order = np.argsort(original, axis=1).astype(np.int32)
    num_queries, total = len(pair[0]), len(values)

    def reciprocal(image: int, k: int) -> np.ndarray:
        near = order[image, : k + 1]
        return near[(order[near, : k + 1] == image).any(axis=1)]

    described = np.zeros_like(original)
    for image in range(total):
        found = expanded = reciprocal(image, k1)
        for neighbour in found:
            theirs = reciprocal(neighbour, round(k1 / 2))
            if len(np.intersect1d(theirs, found)) > 2 / 3 * len(theirs):
                expanded = np.append(expanded, theirs)
        expanded = np.unique(expanded)
        weights = np.exp(-original[image, expanded])
        described[image, expanded] = weights / weights.sum()
    described = np.stack([described[order[image, :k2]].mean(axis=0) for image in range(total)])
    jaccard = np.empty((num_queries, total), original.dtype)
    columns = [np.flatnonzero(described[:, image]) for image in range(total)]
    for query in range(num_queries):
        shared = np.zeros(total, original.dtype)
        for image in np.flatnonzero(described[query]):
            rows_with = columns[image]
            shared[rows_with] += np.minimum(described[query, image], described[rows_with, image])
        jaccard[query] = 1 - shared / (2 - shared)
    mixed = (1 - weight) * jaccard + weight * original[:num_queries]
    return np.asarray(mixed[:, num_queries:])

"""Re-ranking by k-reciprocal neighbours (Zhong et al. 2017): pictures that find each other.

Dense: a few N x N matrices, N = Q + G, so for hundreds of pictures (those nearest to a query), not
for whole data sets.

Letters: Q queries, G gallery rows, N all of them, D embedding size.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.errors import DataError

K1 = 20
"""Neighbours that may be reciprocal (the paper's value)."""
K2 = 6
"""Neighbours that a picture is averaged with."""
ORIGINAL_WEIGHT = 0.3
"""Lambda: the share of the original distance in the final one."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def k_reciprocal_distances(
    *,
    queries: npt.NDArray[np.floating[Any]],
    gallery: npt.NDArray[np.floating[Any]],
    k1: int = K1,
    k2: int = K2,
    original_weight: float = ORIGINAL_WEIGHT,
) -> Floats:
    """Return distances (Q, G) that know about neighbours; 0 is nearest, 1 the farthest.

    As the paper's own code on features of length 1: the original distance is 2 - 2 cos, divided by
    the largest of its row; among equal distances the lower index (queries first) is nearer.

    Args:
        queries: (Q, D), floats of any length but 0.
        gallery: (G, D), likewise; more than `k1` rows, or everybody is everybody's neighbour.
        k1: neighbours that are looked at.
        k2: neighbours (a picture itself is the first) whose sets are averaged.
        original_weight: lambda, in 0-1.

    Raises:
        DataError: the gallery has too few rows.
    """
    if len(gallery) <= k1:
        raise DataError(
            f"re-ranking looks at {k1} neighbours of each picture, and there are {len(gallery)} "
            "rows to rank; leave re-ranking out"
        )
    features = np.concatenate([queries, gallery]).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.maximum(2 - 2 * features @ features.T, 0)
    np.fill_diagonal(distances, 0)
    distances /= distances.max(axis=1, keepdims=True)
    order = np.argsort(distances, axis=1, kind="stable")  # (N, N)

    reciprocal = _reciprocal(order, k1)
    half = _reciprocal(order, round(k1 / 2))
    # A neighbour brings its own (half as many) neighbours, if over two thirds of them are shared.
    shared = _count(reciprocal, half)  # (N, N): of half's row j, how many are in reciprocal's row i
    brings = reciprocal & (shared > 2 / 3 * half.sum(axis=1))
    expanded = reciprocal | (_count(brings, half.T) > 0)

    weights = np.where(expanded, np.exp(-distances), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    # Summed neighbour by neighbour: never an (N, k2, N) copy.
    weights = sum((weights[order[:, place]] for place in range(k2)), np.zeros_like(weights)) / k2

    num_queries = len(queries)
    result = np.empty((num_queries, len(gallery)))
    for query in range(num_queries):
        common = np.minimum(weights[query], weights[num_queries:]).sum(axis=1)  # (G,)
        jaccard = 1 - common / (2 - common)
        original = distances[query, num_queries:]
        result[query] = (1 - original_weight) * jaccard + original_weight * original
    return result


def _reciprocal(order: npt.NDArray[np.intp], k: int) -> Flags:
    """Who is among the k nearest of each other (N, N); a picture is its own nearest."""
    is_near = np.zeros(order.shape, np.bool_)
    np.put_along_axis(is_near, order[:, : k + 1], True, axis=1)
    return is_near & is_near.T


def _count(left: Flags, right: Flags) -> npt.NDArray[np.float32]:
    """How many members each row of `left` has in common with each row of `right`."""
    counts: npt.NDArray[np.float32] = left.astype(np.float32) @ right.astype(np.float32).T
    return counts

"""`make bench`: hot paths beside their obvious implementations, measured in the same run.

Fixed seed and sizes, one warm-up, the median of several runs on one thread; the sides take turns,
so that a busy machine slows both. Prints a table, then one JSON line with machine and versions.
Each measurement first checks that both sides give the same answer.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

import airnet_cli
from airnet_cli.core.model.pooling import AttentionPooling
from airnet_cli.core.retrieval.rerank import Reranking, k_reciprocal_distances

RUNS = 7
FEW_RUNS = 1
"""Where the obvious way takes tens of seconds."""


@dataclass(frozen=True)
class Measurement:
    """Median seconds of one hot path and of the obvious way to the same answer."""

    name: str
    seconds: float
    obvious_seconds: float

    @property
    def ratio(self) -> float:
        """How many times quicker ours is."""
        return self.obvious_seconds / self.seconds


def main() -> None:
    """Run every measurement and print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    measurements = [attention_pooling(), re_ranking()]
    print(f"{'what':<42} {'ours':>10} {'obvious':>10} {'ratio':>7}")
    for each in measurements:
        ours, obvious = 1e3 * each.seconds, 1e3 * each.obvious_seconds
        print(f"{each.name:<42} {ours:>7.1f} ms {obvious:>7.1f} ms {each.ratio:>6.1f}x")
    machine = {
        "machine": platform.machine(),
        "processor": platform.processor() or "unknown",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "airnet": airnet_cli.__version__,
    }
    print(json.dumps({**machine, "measurements": [asdict(each) for each in measurements]}))


def attention_pooling() -> Measurement:
    """Attention-based pooling, positions collapsed first, beside eq. (3) as it is printed."""
    pooling = AttentionPooling(2048).eval()
    features = torch.rand(4, 2048, 24, 12)

    def literal() -> torch.Tensor:
        positions = features.flatten(2).transpose(1, 2)  # (B, HW, C)
        values, weights = pooling.value(positions), pooling.attention(positions)
        return torch.matmul(values.transpose(1, 2), weights).squeeze(2)  # (B, C)

    with torch.inference_mode():
        torch.testing.assert_close(pooling(features), literal(), rtol=1e-3, atol=1e-3)
        return measure("attention pooling, 4 x 2048 x 24 x 12", lambda: pooling(features), literal)


def re_ranking() -> Measurement:
    """k-reciprocal re-ranking, sparse, beside the published dense form of it (N x N matrices)."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((750, 2048), dtype=np.float32)
    queries, gallery = (
        centres[random.integers(0, 750, rows)]
        + 2 * random.standard_normal((rows, 2048), dtype=np.float32)
        for rows in (1000, 5000)
    )
    reranking = Reranking()

    def ours() -> np.ndarray:
        return k_reciprocal_distances(queries=queries, gallery=gallery, reranking=reranking)

    def dense() -> np.ndarray:
        return dense_re_ranking(queries, gallery, reranking)

    np.testing.assert_allclose(ours(), dense(), atol=1e-6)
    return measure("re-ranking, 1,000 + 5,000 x 2048", ours, dense, runs=FEW_RUNS)


def dense_re_ranking(queries: np.ndarray, gallery: np.ndarray, reranking: Reranking) -> np.ndarray:
    """Distances (Q, G) by whole matrices, one picture after the other (Zhong et al. 2017)."""
    k1, k2, share = reranking.k1, reranking.k2, reranking.original_weight
    features = np.concatenate([queries, gallery])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.maximum(2 - 2 * features @ features.T, 0)
    np.fill_diagonal(distances, 0)
    distances /= distances.max(axis=1, keepdims=True)
    order = np.argsort(distances, axis=1)

    def mutual(picture: int, k: int) -> np.ndarray:
        near = order[picture, : k + 1]
        return near[(order[near, : k + 1] == picture).any(axis=1)]

    weights = np.zeros_like(distances)
    for picture in range(len(features)):
        expanded = own = mutual(picture, k1)
        for neighbour in own:
            others = mutual(neighbour, round(k1 / 2))
            if len(np.intersect1d(others, own)) > 2 / 3 * len(others):
                expanded = np.append(expanded, others)
        expanded = np.unique(expanded)
        values = np.exp(-distances[picture, expanded])
        weights[picture, expanded] = values / values.sum()
    weights = np.stack([weights[near].mean(axis=0) for near in order[:, :k2]])
    holders = [np.flatnonzero(column) for column in weights.T]  # the inverted index
    result = np.empty((len(queries), len(gallery)))
    for query in range(len(queries)):
        common = np.zeros(len(features))
        for neighbour in np.flatnonzero(weights[query]):
            rows = holders[neighbour]
            common[rows] += np.minimum(weights[query, neighbour], weights[rows, neighbour])
        common = common[len(queries) :]
        result[query] = (1 - share) * (1 - common / (2 - common))
        result[query] += share * distances[query, len(queries) :]
    return result


def measure(
    name: str,
    ours: Callable[[], object],
    obvious: Callable[[], object],
    *,
    runs: int = RUNS,
) -> Measurement:
    """Time both sides in turn; the medians count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for side, function in enumerate((ours, obvious)):
            start = time.perf_counter()
            function()
            if run:  # the first is the warm-up
                seconds[side].append(time.perf_counter() - start)
    return Measurement(name, *(statistics.median(side) for side in seconds))


if __name__ == "__main__":
    main()

"""How near each gallery embedding is to each query, a block of queries at a time.

Written for rankings: what comes out is a *nearness* in float32, larger is nearer, in the order of
the metric's distance but not on its scale. The gallery may be memory-mapped, of any float type and
in any order of memory: no copy of more than a small piece is ever made, and no Q x G matrix exists.

Letters: Q queries, G gallery rows that are ranked, D embedding size, B queries of one block.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from airnet_cli.errors import EvaluationError

Metric = Literal["cosine", "euclidean"]

BLOCK_BYTES = 96 * 2**20
"""Of one (B, G) block of nearness; it is allocated once."""

PIECE_BYTES = 32 * 2**20
"""Of the rows gathered or converted to float32 at a time, if they can't be used in place."""

SQUARED_BYTES = 2**20
"""Of the rows that are squared at a time: a cache's size."""

SHORTEST_SQUARED = 1e-30
"""Squared length under which a vector's direction is lost in float32 products."""


def nearness_blocks(
    *,
    query_embeddings: Tensor,
    gallery_embeddings: Tensor,
    query_rows: npt.NDArray[np.int64],
    gallery_rows: npt.NDArray[np.int64],
    metric: Metric,
    query_block: int | None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (b, nearness): `nearness[i, j]` is that of `query_rows[b + i]` and `gallery_rows[j]`.

    Cosine: <q, g> / |g|. Euclidean: <q, g> - |g|^2 / 2. For one query both fall as the distance
    rises, since what was left out (|q|, its square) is the same for the whole row. Nothing is
    rounded before the product, so distances that are exact in float32 stay exact, and equal rows
    are equally near.

    Args:
        query_embeddings: (N, D), floats; read as float32.
        gallery_embeddings: (M, D), floats, on the same device; read as float32.
        query_rows: (Q,) the rows of `query_embeddings` to compare, at least one.
        gallery_rows: (G,) the rows of `gallery_embeddings` to compare, at least one.
        metric: What "near" means.
        query_block: B; None takes as many queries as `BLOCK_BYTES` hold.

    Yields:
        The number of queries before this block, and float32 (B, G), B smaller in the last block. It
        may be changed freely, and is overwritten by the next block.

    Raises:
        EvaluationError: A gallery row is not finite, or has no direction under cosine.
    """
    squared = squared_lengths(gallery_embeddings, rows=gallery_rows, metric=metric, name="gallery")
    lengths, half_squared = squared.sqrt(), squared / 2
    num_gallery = len(gallery_rows)
    block_size = query_block or max(1, BLOCK_BYTES // (4 * num_gallery))
    buffer = torch.empty(
        (min(block_size, len(query_rows)), num_gallery), device=gallery_embeddings.device
    )
    for first in range(0, len(query_rows), block_size):
        queries = _take(query_embeddings, query_rows[first : first + block_size])  # (B, D)
        nearness = buffer[: len(queries)]
        product(queries, gallery_embeddings, rows=gallery_rows, out=nearness)
        if metric == "cosine":
            nearness /= lengths
        else:
            nearness -= half_squared
        yield first, nearness


def product(queries: Tensor, gallery: Tensor, *, rows: npt.NDArray[np.int64], out: Tensor) -> None:
    """Write the products of all `queries` with `rows` of the gallery into `out`.

    Args:
        queries: (B, D), floats; read as float32.
        gallery: (M, D), floats, on the same device; read as float32, a piece at a time.
        rows: (G,) ascending.
        out: (B, G) float32.
    """
    queries = queries.detach().to(torch.float32)
    for begin, piece in _pieces(gallery, rows):
        place = out[:, begin : begin + len(piece)]
        if out.device.type == "cpu":
            # On processors that torch's product is not made for, NumPy's takes two thirds the time.
            np.matmul(queries.numpy(), piece.numpy().T, out=place.numpy())
        else:
            torch.mm(queries, piece.T, out=place)


def squared_lengths(
    embeddings: Tensor, *, rows: npt.NDArray[np.int64], metric: Metric, name: str
) -> Tensor:
    """Return the squared length of each of `rows`, float32 (len(rows),), fit for `metric`.

    Args:
        embeddings: (N, D), floats.
        rows: The rows to look at.
        metric: Under cosine a zero vector is an error, since it has no direction.
        name: "query" or "gallery", for the message.

    Raises:
        EvaluationError: A row is not finite, too large to be squared in float32, or has no
            direction under cosine.
    """
    squared = torch.empty(len(rows), device=embeddings.device)
    step = max(1, SQUARED_BYTES // (4 * embeddings.shape[1]))
    for begin, piece in _pieces(embeddings, rows):
        for first in range(0, len(piece), step):
            part = piece[first : first + step]
            squared[begin + first : begin + first + len(part)] = part.square().sum(dim=1)
    _refuse(
        ~squared.isfinite(),
        rows,
        f"{name} embeddings: row {{}} holds NaN, infinity or values too large for float32; "
        "compute the embeddings again, or leave that row out",
    )
    if metric == "cosine":
        _refuse(
            squared < SHORTEST_SQUARED,
            rows,
            f"{name} embeddings: row {{}} is (nearly) zero and has no direction, which cosine "
            "needs; compute the embeddings again, leave that row out, or compare by euclidean",
        )
    return squared


def _refuse(is_bad: Tensor, rows: npt.NDArray[np.int64], message: str) -> None:
    if is_bad.any():
        raise EvaluationError(message.format(rows[int(is_bad.nonzero()[0])]))


def _pieces(embeddings: Tensor, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, Tensor]]:
    """Yield `rows` as float32 pieces of up to `PIECE_BYTES`, each with the number before it."""
    size = max(1, PIECE_BYTES // (4 * embeddings.shape[1]))
    for begin in range(0, len(rows), size):
        yield begin, _take(embeddings, rows[begin : begin + size])


def _take(embeddings: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
    """Return ascending `rows` as float32: a view if they are adjacent and float32, else a copy."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        taken = embeddings[first : last + 1]
    else:
        taken = embeddings[torch.from_numpy(rows).to(embeddings.device)]
    return taken.detach().to(torch.float32)

"""Blocks of nearness: the order of the distance, whatever the gallery's type, layout and size."""

import numpy as np
import pytest
import torch

from airnet_cli.core.retrieval import distance
from airnet_cli.core.retrieval.distance import nearness_blocks, squared_lengths
from airnet_cli.errors import EvaluationError

METRICS = ["cosine", "euclidean"]


def all_nearness(queries, gallery, *, metric, query_rows=None, gallery_rows=None, block=None):
    """Return the blocks as one matrix."""
    return torch.cat(
        [
            block.clone()
            for _, block in nearness_blocks(
                query_embeddings=queries,
                gallery_embeddings=gallery,
                query_rows=np.arange(len(queries)) if query_rows is None else query_rows,
                gallery_rows=np.arange(len(gallery)) if gallery_rows is None else gallery_rows,
                metric=metric,
                query_block=block,
            )
        ]
    )


def features(seed, rows, size=8):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, size))).float()


def test_nearness_is_what_is_documented():
    """Cosine times the query's length; minus half the squared distance, up to the query's part."""
    queries, gallery = features(0, 5), features(1, 9)
    length = queries.norm(dim=1, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], gallery[None], dim=2)
    torch.testing.assert_close(all_nearness(queries, gallery, metric="cosine"), cosine * length)
    squared = ((queries[:, None] - gallery[None]) ** 2).sum(dim=2)
    torch.testing.assert_close(
        all_nearness(queries, gallery, metric="euclidean"), (length**2 - squared) / 2
    )


@pytest.mark.parametrize("piece_rows", [1, 3, 1000])
@pytest.mark.parametrize("block", [None, 1, 2])
@pytest.mark.parametrize("metric", METRICS)
def test_rows_blocks_and_pieces_do_not_matter(monkeypatch, metric, block, piece_rows):
    """Chosen rows are compared, in their order, however the work is cut up."""
    queries, gallery = features(0, 5), features(1, 9)
    query_rows, gallery_rows = np.array([0, 3, 4]), np.array([1, 2, 5, 8])
    whole = all_nearness(queries, gallery, metric=metric)
    monkeypatch.setattr(distance, "PIECE_BYTES", piece_rows * 4 * 8)
    ours = all_nearness(
        queries, gallery, metric=metric, query_rows=query_rows, gallery_rows=gallery_rows,
        block=block,
    )  # fmt: skip
    torch.testing.assert_close(ours, whole[query_rows][:, gallery_rows])


def as_mapped(values, tmp_path, *, order="C"):
    path = tmp_path / "gallery.npy"
    np.save(path, np.asarray(values.numpy(), order=order))
    return torch.from_numpy(np.load(path, mmap_mode="c"))


@pytest.mark.parametrize(
    "store",
    [
        pytest.param(lambda values, _: values.half(), id="float16"),
        pytest.param(lambda values, _: values.double(), id="float64"),
        pytest.param(as_mapped, id="memory-mapped"),
        pytest.param(lambda values, path: as_mapped(values, path, order="F"), id="Fortran order"),
        pytest.param(lambda values, _: values.clone().requires_grad_(), id="with gradients"),
    ],
)
@pytest.mark.parametrize("metric", METRICS)
def test_type_and_layout_of_the_gallery_do_not_matter(tmp_path, metric, store):
    """Any float type and order of memory gives what float32 gives."""
    queries, gallery = features(0, 5), features(1, 9).half().float()  # exact in float16
    torch.testing.assert_close(
        all_nearness(queries, store(gallery, tmp_path), metric=metric),
        all_nearness(queries, gallery, metric=metric),
    )


def test_block_size_follows_the_memory_budget(monkeypatch):
    """A block holds as many queries as the budget allows, and one at the least."""
    queries, gallery = features(0, 10), features(1, 100)
    for budget, sizes in ((4 * 100 * 4, [4, 4, 2]), (1, [1] * 10)):
        monkeypatch.setattr(distance, "BLOCK_BYTES", budget)
        blocks = nearness_blocks(
            query_embeddings=queries, gallery_embeddings=gallery, query_rows=np.arange(10),
            gallery_rows=np.arange(100), metric="cosine", query_block=None,
        )  # fmt: skip
        assert [len(block) for _, block in blocks] == sizes


def test_squared_lengths_refuse_by_the_rows_own_number():
    """The message names the row of the whole matrix, not the place among the chosen rows."""
    embeddings = torch.ones(6, 2)
    embeddings[4] = 1e30  # finite, but not its square
    with pytest.raises(EvaluationError, match="gallery embeddings: row 4 "):
        squared_lengths(embeddings, rows=np.array([1, 4]), metric="euclidean", name="gallery")
    rows = np.array([1, 5])
    assert squared_lengths(
        embeddings, rows=rows, metric="cosine", name="gallery"
    ).tolist() == [2, 2]  # fmt: skip

"""The table of single queries, read back."""

import csv

import numpy as np
import pytest
import torch

from airnet_cli.core.retrieval.metrics import evaluate_retrieval
from airnet_cli.core.retrieval.per_query import COLUMNS, write_per_query
from airnet_cli.errors import OutputError

QUERIES = {
    "query_person_ids": np.array([1, 2, 9]),
    "query_camera_ids": np.array([1, 1, 1]),
}


def scores():
    """Ranks 1 and 3; rank 2; and a query that does not count."""
    return evaluate_retrieval(
        query_embeddings=torch.tensor([[1.0, 0], [0, 1], [1, 1]]),
        gallery_embeddings=torch.tensor([[1.0, 0.1], [0.2, 0.9], [0.1, 0.9]]),
        gallery_person_ids=np.array([1, 2, 1]),
        gallery_camera_ids=np.array([2, 2, 2]),
        metric="cosine",
        **QUERIES,
    )


@pytest.mark.parametrize(
    ("paths", "shown"),
    [(None, ["", "", ""]), (("a,b.jpg", "c.jpg", "d.jpg"), ["a,b.jpg", "c.jpg", "d.jpg"])],
    ids=["paths unknown", "paths"],
)
def test_a_line_for_each_query(tmp_path, paths, shown):
    """Numbers come back as they are; what does not count has empty cells."""
    path = tmp_path / "table.csv"
    write_per_query(path, scores=scores(), query_paths=paths, **QUERIES)
    header, *rows = csv.reader(path.read_text().splitlines())
    assert tuple(header) == COLUMNS
    assert rows == [
        [shown[0], "1", "1", str((1 + 2 / 3) / 2), str((2 + 1 / 2 + 2 / 3) / 4), str(2 / 3),
         "1", "2", "1 3"],
        [shown[1], "2", "1", "0.5", "0.25", "0.5", "2", "1", "2"],
        [shown[2], "9", "1", "", "", "", "", "0", ""],
    ]  # fmt: skip


def test_a_place_that_can_not_be_written(tmp_path):
    """One line says which."""
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "table.csv"
    with pytest.raises(OutputError, match=r"can't write .*table\.csv"):
        write_per_query(path, scores=scores(), query_paths=None, **QUERIES)

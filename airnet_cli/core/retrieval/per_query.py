"""The table of single queries: what each one found, as CSV, a line per query in their order.

path, person_id, camera_id       the query; `path` is empty where nobody knows it
AP, AP_trapezoid, INP            fractions; empty where the query does not count
first_match_rank                 of the nearest right answer, from 1; empty likewise
num_matches                      right answers
match_ranks                      the ranks of all of them, ascending, with spaces between
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from airnet_cli.core.files import write_rows, write_text
from airnet_cli.core.retrieval.metrics import RetrievalScores

COLUMNS = (
    "path",
    "person_id",
    "camera_id",
    "AP",
    "AP_trapezoid",
    "INP",
    "first_match_rank",
    "num_matches",
    "match_ranks",
)


def write_per_query(
    path: Path,
    *,
    scores: RetrievalScores,
    query_paths: Sequence[str] | None,
    query_person_ids: npt.NDArray[np.int64],
    query_camera_ids: npt.NDArray[np.int64],
) -> None:
    """Write the table to `path`, whole or not at all.

    Args:
        path: Replaced if it exists.
        scores: Of Q queries.
        query_paths: Their Q images; None where they are not known.
        query_person_ids: (Q,)
        query_camera_ids: (Q,)

    Raises:
        OutputError: It can't be written.
    """
    text = io.StringIO(newline="")
    write_rows(text, [COLUMNS])
    for query, ranks in enumerate(scores.match_ranks):
        values = (
            scores.average_precisions[query],
            scores.average_precisions_trapezoid[query],
            scores.inverse_negative_penalties[query],
        )
        cells: list[object] = [
            "" if query_paths is None else query_paths[query],
            query_person_ids[query],
            query_camera_ids[query],
            *(float(value) if len(ranks) else "" for value in values),
            ranks[0] if len(ranks) else "",
            len(ranks),
            " ".join(map(str, ranks.tolist())),
        ]
        write_rows(text, [cells])
    write_text(path, text.getvalue())

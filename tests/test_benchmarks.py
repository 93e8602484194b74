"""What the benchmarks measure with. They run themselves, in their quick size, in `.ci/run`."""

import importlib
import json
import time

import numpy as np
import pytest

from benchmarks.__main__ import PATHS
from benchmarks.measure import CLEAR, Row, Sizes, apart, in_turn, peak_memory_mb, to_json


def test_sides_take_turns_and_the_fastest_counts():
    """One turn each to warm up, which is not counted."""
    said: list[str] = []
    pauses = {"ours": iter([0, 0.3, 0.02]), "rival": iter([0, 0.01, 0.3])}

    def side(name: str) -> None:
        said.append(name)
        time.sleep(next(pauses[name]))

    ours, rival = in_turn(lambda: side("ours"), lambda: side("rival"), turns=2)
    assert said == ["ours", "rival"] * 3
    assert 0.02 <= ours < 0.3
    assert 0.01 <= rival < 0.3


def test_what_is_warm_already_is_counted_at_once():
    """Each side runs once."""
    said: list[str] = []
    in_turn(lambda: said.append("ours"), lambda: said.append("rival"), turns=1, is_warm=True)
    assert said == ["ours", "rival"]


def hold(mib: int) -> np.ndarray:
    return np.ones(mib * 2**20, np.uint8)


def hold_twice(held: np.ndarray) -> np.ndarray:
    return np.concatenate([held, held])


def fail(_: object) -> None:
    raise SystemExit(3)


@pytest.mark.slow
@pytest.mark.skipif(not CLEAR.exists(), reason="needs /proc")
def test_memory_is_what_the_work_takes_on_top():
    """Not what was held before it, and not what another process once took."""
    assert 120 < peak_memory_mb(hold, hold_twice, 64) < 140
    measured = apart(hold, hold_twice, 16)
    assert 28 < measured.memory_mb < 50
    assert measured.seconds > 0
    assert measured.unmapped_mb is None
    with pytest.raises(RuntimeError, match="ended early"):
        apart(hold, fail, 1)


def test_ratios_and_the_json_line():
    """A ratio is read as the row says; sizes choose between two values."""
    times = {"seconds": 2.0, "rival_seconds": 1.0}
    rows = [
        Row(path="a", case="b", rival="c", target="at most 1", **times),
        Row(path="a", case="b", rival="c", target="at least 1", ratio_is="rival / ours", **times),
    ]
    line = to_json(rows, Sizes("quick"), {"cores": 2})
    figures = json.loads(line)
    assert "\n" not in line
    assert (figures["sizes"], figures["cores"]) == ("quick", 2)
    assert [row["ratio"] for row in figures["rows"]] == [2.0, 0.5]
    assert [Sizes(name).pick(1, 2) for name in ("full", "quick")] == [1, 2]


@pytest.mark.parametrize("path", PATHS)
def test_each_path_has_rows(path):
    """Every name that --only takes is a module which makes rows."""
    assert callable(importlib.import_module(f"benchmarks.{path}").rows)

"""Products of int8, judged by NumPy's int64."""

import numpy as np
import pytest
import torch

from airnet_cli.core.retrieval import kernels
from airnet_cli.core.retrieval.kernels import Kernel, choose_kernel, kernel_of

NAMES = ["numkong", "torch", "bfloat16", "float32"]


def kernel(name) -> Kernel:
    if name == "numkong":
        pytest.importorskip("numkong", reason="needs numkong: pip install 'airnet[ann]'")
    return kernel_of(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_queries", [1, 2, 9, 33])
@pytest.mark.parametrize("width", [1, 63, 300])
def test_a_product_is_as_wrong_as_it_says(name, num_queries, width):
    """Of whole rows and of columns amid others; the largest sums, and a piece that is not full."""
    random = np.random.default_rng(num_queries)
    rows = random.integers(-127, 128, (70, width + 5), np.int8)[:, 2 : 2 + width]
    queries = random.integers(-127, 128, (num_queries, width), np.int8)
    rows[3], queries[0] = 127, 127
    chosen = kernel(name)
    found = chosen.multiply(rows, queries)
    wide = [each.astype(np.int64) for each in (rows, queries)]
    lengths = [np.sqrt((each**2).sum(axis=1)) for each in wide]
    error = (chosen.error(width) + 2.0**-23) * np.outer(*lengths)
    assert found.shape == (70, num_queries)
    assert found.dtype == np.float32
    assert (np.abs(found - (wide[0] @ wide[1].T)) <= error).all()


@pytest.fixture
def fresh():
    """What was chosen for this machine is forgotten, before and after."""
    remembered = (kernels._quickest, kernels._share_of_floats)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


def pretend(monkeypatch, **makers):
    monkeypatch.setattr(kernels, "_MAKERS", {**kernels._MAKERS, **makers})


def missing():
    raise ImportError("no such package")


def made(multiply):
    return lambda: Kernel("numkong", multiply, 0.0, 0.0, 0)


@pytest.mark.parametrize("num_queries", [1, 100])
def test_what_is_missing_wrong_or_slow_is_not_chosen(fresh, monkeypatch, num_queries):
    """Only float32 is left, which is everywhere."""

    def saturating(rows, queries):
        wide = rows.astype(np.int64) @ queries.T.astype(np.int64)
        return np.clip(wide, -(2**15), 2**15 - 1).astype(np.float32)

    def slow(rows, queries):
        return sum(
            kernel_of("float32").multiply(rows, queries) for _ in range(40)
        ) / np.float32(40)  # fmt: skip

    def broken(rows, queries):
        raise RuntimeError("not on this processor")

    monkeypatch.setattr(kernels, "has_native_bfloat16", lambda device: False)
    for maker in (missing, made(saturating), made(slow), made(broken)):
        kernels._quickest.cache_clear()
        pretend(monkeypatch, numkong=maker, torch=missing)
        assert choose_kernel(2048, num_queries).name == "float32"


def test_the_quickest_is_chosen(fresh, monkeypatch):
    """A right answer that was there before the question wins."""
    _, _, expected, _ = kernels._case(2)
    known = expected.astype(np.float32)
    pretend(monkeypatch, numkong=made(lambda rows, queries: known), torch=missing)
    assert choose_kernel(2048, 1).name == "numkong"


def test_sums_that_int32_may_not_hold_are_floats():
    """From 133,153 columns on."""
    assert choose_kernel(kernels.WIDEST + 1, 1).name == "float32"


def test_torch_without_its_product_is_no_kernel(monkeypatch):
    """It has no promise to stay."""
    monkeypatch.delattr(torch, "_int_mm")
    with pytest.raises(AttributeError):
        kernel_of("torch")


def test_int8_is_worth_while_where_it_is_quicker_than_floats(fresh, monkeypatch):
    """Always for a few queries; for many by a kernel that beats NumPy's product of floats."""
    expected = kernels._case(64)[2].astype(np.float32)
    pretend(monkeypatch, numkong=made(lambda rows, queries: expected), torch=missing)
    assert kernels.is_worthwhile(2048, 100)
    kernels._quickest.cache_clear()
    kernels._share_of_floats.cache_clear()
    pretend(monkeypatch, numkong=missing, torch=missing)
    monkeypatch.setattr(kernels, "has_native_bfloat16", lambda device: False)
    assert not kernels.is_worthwhile(2048, 100)  # float32, and int8 made float32 before that
    assert kernels.is_worthwhile(2048, kernels.FEW)

"""What tests of every part share. Nothing heavy here: each test file pays for its own imports."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Results of public reference code, which lie beside the project where its makers put them."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden results at {GOLDEN}")
    return GOLDEN

"""What tests of `core` share: golden blocks, nearness in the goldens' terms, tiny images.

Networks are small where weights matter, and on torch's `meta` device where only shapes do.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from airnet_cli.core.gallery import Gallery, files

OUTPUT_TOLERANCE = 1e-5
"""Relative to max|.|; gradients 1e-4: the goldens' README."""


@pytest.fixture(scope="session")
def golden_block(golden_dir: Path) -> Callable[[str], dict[str, Tensor]]:
    """Return a function that reads the arrays of one golden block."""

    def read(name: str) -> dict[str, Tensor]:
        with np.load(golden_dir / "blocks" / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}

    return read


@pytest.fixture(scope="session")
def golden_json(golden_dir: Path) -> Callable[[str], dict]:
    """Return a function that reads one JSON file of the golden blocks."""
    return lambda name: json.loads((golden_dir / "blocks" / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def assert_near() -> Callable[..., None]:
    """Return a function that compares relative to the largest expected magnitude."""

    def check(actual: Tensor, expected: Tensor, *, tolerance: float, floor: float = 0.0) -> None:
        """`floor` is the least magnitude to relate to, for what is zero but for rounding."""
        assert actual.shape == expected.shape
        difference = (actual.detach() - expected).abs().max().item()
        scale = max(expected.abs().max().item(), floor)
        assert difference <= tolerance * scale, f"{difference:.2e} of {scale:.2e}"

    return check


@pytest.fixture(scope="session")
def check_block(assert_near) -> Callable[[torch.nn.Module, Mapping[str, Tensor]], None]:
    """Return a function that holds a module against a golden block.

    Outputs in both modes, gradients of sum(out * cotangent) for the input and each parameter, and
    the buffers after one training forward.
    """

    def check(module: torch.nn.Module, golden: Mapping[str, Tensor]) -> None:
        weights = {k.removeprefix("w/"): v for k, v in golden.items() if k.startswith("w/")}
        for mode in ("eval", "train"):
            module.load_state_dict(weights, strict=True)
            module.train(mode == "train")
            module.zero_grad()
            x = golden["x"].clone().requires_grad_()
            out = module(x)
            assert_near(out, golden[f"out_{mode}"], tolerance=OUTPUT_TOLERANCE)
            (out * golden["cotangent"]).sum().backward()
            gradients = {name: p.grad for name, p in module.named_parameters()}
            expected = {
                key.removeprefix(f"grad_{mode}/"): value
                for key, value in golden.items()
                if key.startswith(f"grad_{mode}/")
            }
            assert gradients.keys() == expected.keys()
            largest = max(value.abs().max().item() for value in expected.values())
            assert_near(x.grad, golden[f"grad_x_{mode}"], tolerance=1e-4)
            for name, gradient in gradients.items():
                assert_near(gradient, expected[name], tolerance=1e-4, floor=1e-2 * largest)
        after = {
            key.removeprefix("buffer_after_train/"): value
            for key, value in golden.items()
            if key.startswith("buffer_after_train/")
        }
        buffers = dict(module.named_buffers())
        assert buffers.keys() == after.keys()
        for name, buffer in buffers.items():
            assert_near(buffer, after[name], tolerance=OUTPUT_TOLERANCE)

    return check


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[int]]:
    """Paths and person ids of 24 drawn crops, 64 x 32: six people in two-coloured clothes."""
    folder = tmp_path_factory.mktemp("crops")
    random = np.random.default_rng(5)
    paths, person_ids = [], []
    for person_id in range(6):
        coat, trousers = random.integers(0, 256, (2, 1, 1, 3))
        for shot in range(4):
            pixels = np.empty((64, 32, 3))
            pixels[:32], pixels[32:] = coat, trousers
            pixels += random.normal(0, 12, pixels.shape)
            path = folder / f"{person_id}_{shot}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            paths.append(path)
            person_ids.append(person_id)
    return paths, person_ids


DRAWN_HEADS = {"A1": [0, 10], "I": [10, 24]}


@pytest.fixture(scope="session")
def write_gallery() -> Callable[..., Gallery]:
    """Return a function that writes a gallery of drawn features, twenty for each person."""

    def write(
        path: Path, rows: int = 600, seed: int = 0, dtype: files.DTypeName = "float32"
    ) -> Gallery:
        random = np.random.default_rng(seed)
        people = random.standard_normal((rows // 20 + 1, 24))
        values = people[np.arange(rows) // 20] + random.standard_normal((rows, 24)) / 2
        columns = {
            "path": [f"{row}.jpg" for row in range(rows)],
            "person_id": [str(row // 20 + 1) for row in range(rows)],
        }
        record = {"fingerprint": "ab" * 32, "checkpoint": "x", "heads": DRAWN_HEADS}
        record |= {"normalize_heads": False, "flip": False, "dimensions": 24, "dtype": dtype}
        source = Gallery(path, values.astype(np.float32), columns, heads={}, record={})
        files.write_gallery(path, source, record)
        return files.read_gallery(path)

    return write

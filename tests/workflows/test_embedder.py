"""The embedder: whatever an image comes as, its embedding is that of training's preprocessing."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from airnet_cli.core.checkpoint import model_fingerprint
from airnet_cli.core.data.transforms import read_image
from airnet_cli.errors import AirnetError, CheckpointError, DataError, UsageError
from airnet_cli.workflows.embedder import Embedder

HEIGHT, WIDTH = 64, 32
RANDOM = np.random.default_rng(11)
PIXELS = RANDOM.integers(0, 256, (50, 30, 3), dtype=np.uint8)
FITTING = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def embedder(untrained_run: Path) -> Embedder:
    """An embedder with batches of two, so that most calls take several."""
    return Embedder.load(untrained_run, device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five noisy crops of different sizes."""
    folder = tmp_path_factory.mktemp("crops")
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        noise = RANDOM.integers(0, 256, (40 + number, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return paths


def slowly(embedder: Embedder, images: list[torch.Tensor]) -> np.ndarray:
    """The obvious embeddings: one image at a time, all heads, the network called by hand."""
    with torch.inference_mode():
        rows = [
            torch.cat([head.normalized for head in embedder.network(image[None])], dim=1)
            for image in images
        ]
    return torch.cat(rows).numpy()


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def as_path(pixels: np.ndarray, folder: Path) -> Path:
    Image.fromarray(pixels).save(folder / "crop.png")
    return folder / "crop.png"


FORMS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "path": as_path,
    "text": lambda pixels, folder: str(as_path(pixels, folder)),
    "pil": lambda pixels, _: Image.fromarray(pixels),
    "array": lambda pixels, _: pixels,
    "reversed BGR": lambda pixels, _: np.ascontiguousarray(pixels[:, :, ::-1])[:, :, ::-1],
    "array batch": lambda pixels, _: pixels[None],
    "tensor": lambda pixels, _: as_tensor(pixels),
    "tensor batch": lambda pixels, _: as_tensor(pixels)[None],
    "float": lambda pixels, _: as_tensor(pixels) / 255,
    "double batch": lambda pixels, _: as_tensor(pixels)[None].double() / 255,
    "with gradient": lambda pixels, _: (as_tensor(pixels) / 255).requires_grad_(),
}


@pytest.mark.parametrize("pixels", [PIXELS, FITTING], ids=["resized", "fitting"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(
    embedder: Embedder, tmp_path: Path, form: str, pixels: np.ndarray
) -> None:
    """A path, a PIL image, an array and a tensor of the same pixels have the same embedding."""
    embedding = embedder(FORMS[form](pixels, tmp_path))
    image = read_image(as_path(pixels, tmp_path), height_px=HEIGHT, width_px=WIDTH)
    assert embedding.shape == (1, embedder.dimensions)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, slowly(embedder, [image]), rtol=1e-4, atol=1e-5)


def test_many_images_of_many_forms(embedder: Embedder, crops: list[Path]) -> None:
    """Several come out in order; a batch within the call takes several rows."""
    fitting = as_tensor(FITTING)
    images = [crops[0], Image.open(crops[1]), torch.stack([fitting, fitting.flip(2)]), PIXELS]
    tensors = [read_image(path, height_px=HEIGHT, width_px=WIDTH) for path in crops[:2]]
    tensors += [fitting, fitting.flip(2)]
    embeddings = embedder(images)
    assert embeddings.shape == (5, embedder.dimensions)
    np.testing.assert_allclose(embeddings[:4], slowly(embedder, tensors), rtol=1e-4, atol=1e-5)


def test_no_image(embedder: Embedder) -> None:
    """A frame without people is an empty matrix, not an error."""
    assert embedder([]).shape == (0, embedder.dimensions)


def test_the_callers_images_stay(embedder: Embedder) -> None:
    """Neither array nor tensor is changed in place."""
    array, tensor = FITTING.copy(), as_tensor(FITTING).clone() / 255
    before = tensor.clone()
    embedder([array, tensor])
    assert np.array_equal(array, FITTING)
    assert torch.equal(tensor, before)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "image 1 is a int; give a path, a PIL image"),
        (PIXELS[:, :, 0], r"NumPy array of the shape \(50, 30\); .* \(height, width, 3\)"),
        (PIXELS.transpose(2, 0, 1), r"\(3, 50, 30\).*; a tensor may have the channels first"),
        (PIXELS[:0], r"of the shape \(0, 30, 3\)"),
        (PIXELS / 255, r"NumPy array of float64; it must be uint8 in 0-255 \(floating point"),
        (torch.from_numpy(PIXELS), r"tensor of the shape \(50, 30, 3\).*array may have the chan"),
        (as_tensor(PIXELS)[:1], r"tensor of the shape \(1, 50, 30\); it must be \(3, height"),
        (as_tensor(PIXELS).long(), "tensor of torch.int64; it must be uint8"),
        (as_tensor(PIXELS).float(), "values from 0 to 255; floating point must be in 0-1"),
        (as_tensor(PIXELS) / 128 - 1, "values from -1 to .* not ImageNet-normalised"),
        (torch.full((3, 8, 8), torch.nan), "values from nan to nan"),
        (Image.new("F", (4, 4)), "image 1 can't be used: 32-bit pixels"),
        ("nowhere.jpg", "image 'nowhere.jpg' can't be read: no such file"),
    ],
    ids=[
        "number",
        "grey",
        "channels first",
        "empty",
        "float array",
        "channels last",
        "one channel",
        "integers",
        "0-255",
        "normalised",
        "nan",
        "mode F",
        "no file",
    ],
)
def test_what_is_no_image(embedder: Embedder, image: Any, message: str) -> None:
    """Layout, type and range are checked: one line on which image, and what it must be."""
    with pytest.raises(DataError, match=message) as error:
        embedder([FITTING, image])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_paths_are_streamed(embedder: Embedder, crops: list[Path], workers: int) -> None:
    """Batches in order, as they are asked for, equal to one image at a time."""
    streaming = Embedder(
        embedder.network,
        embedder.preset,
        embedder.checkpoint,
        fingerprint="",
        device=embedder.device,
        precision="fp32",
        heads=None,
        flip=False,
        batch_size=2,
        workers=workers,
    )
    reports: list[tuple[str, int, int | None, str]] = []
    stream = streaming.embed_paths(crops, progress=lambda *report: reports.append(report))
    batches = list(stream)
    assert [indices.tolist() for indices, _ in batches] == [[0, 1], [2, 3], [4]]
    tensors = [read_image(path, height_px=HEIGHT, width_px=WIDTH) for path in crops]
    rows = np.concatenate([embeddings for _, embeddings in batches])
    np.testing.assert_allclose(rows, slowly(embedder, tensors), rtol=1e-4, atol=1e-5)
    assert reports == [("embedding", done, 5, "images") for done in (2, 4, 5)]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_in_a_stream(
    untrained_run: Path, crops: list[Path], tmp_path: Path, workers: int
) -> None:
    """An error is one line (from worker processes too); skipping keeps positions in step."""
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    paths = [crops[0], tmp_path / "bad.jpg", tmp_path / "gone.jpg", tmp_path / "bad.jpg", crops[1]]
    embedder = Embedder.load(untrained_run, device="cpu", batch_size=2, workers=workers)
    with pytest.raises(DataError) as error:
        list(embedder.embed_paths(paths))
    assert str(error.value) == f"image '{tmp_path / 'bad.jpg'}' can't be read: not an image"
    batches = list(embedder.embed_paths(paths, on_bad_image="skip"))
    assert [indices.tolist() for indices, _ in batches] == [[0], [], [4]]
    assert [embeddings.shape for _, embeddings in batches] == [(1, 1536), (0, 1536), (1, 1536)]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (None, {"A1": slice(0, 512), "A2": slice(512, 1024), "I": slice(1024, 1536)}),
        (["I", "A1"], {"A1": slice(0, 512), "I": slice(512, 1024)}),
        (["A2"], {"A2": slice(0, 512)}),
    ],
    ids=["all", "two", "one"],
)
def test_heads(
    embedder: Embedder, untrained_run: Path, heads: list[str] | None, expected: dict[str, slice]
) -> None:
    """Chosen heads are those parts of the whole, in the network's order."""
    chosen = Embedder.load(untrained_run, device="cpu", heads=heads)
    assert chosen.heads == expected
    assert chosen.dimensions == 512 * len(expected)
    whole, parts = embedder(FITTING), chosen(FITTING)
    for name, part in expected.items():
        np.testing.assert_allclose(parts[:, part], whole[:, embedder.heads[name]], rtol=1e-5)


@pytest.mark.parametrize(
    ("heads", "message"),
    [(["A1", "M"], "head M: this network has A1, A2, I"), ([], "head .none.: this network has")],
    ids=["unknown", "none"],
)
def test_heads_that_are_not_there(untrained_run: Path, heads: list[str], message: str) -> None:
    """The heads that there are, are named."""
    with pytest.raises(UsageError, match=message):
        Embedder.load(untrained_run, device="cpu", heads=heads)


def test_flip_is_the_mean_with_the_mirror_image(embedder: Embedder, untrained_run: Path) -> None:
    """As the obvious mean; pixels are normalised once (in fast-reid the mirror is so twice)."""
    flipping = Embedder.load(untrained_run, device="cpu", flip=True)
    mirror = np.ascontiguousarray(FITTING[:, ::-1])
    mean = (embedder(FITTING) + embedder(mirror)) / 2
    np.testing.assert_allclose(flipping(FITTING), mean, rtol=1e-4, atol=1e-5)
    symmetric = np.concatenate([FITTING[:, :16], FITTING[:, 15::-1]], axis=1)
    np.testing.assert_allclose(flipping(symmetric), embedder(symmetric), rtol=1e-4, atol=1e-5)


def test_heads_are_normalised_after_the_mean(embedder: Embedder, untrained_run: Path) -> None:
    """With the preset's normalize_heads each part has length 1, of the mean if flipped."""
    preset = embedder.preset.model_copy(
        update={
            "evaluation": embedder.preset.evaluation.model_copy(update={"normalize_heads": True})
        }
    )
    normalizing = Embedder(
        embedder.network,
        preset,
        embedder.checkpoint,
        fingerprint="",
        device=embedder.device,
        precision="fp32",
        heads=["A1", "I"],
        flip=True,
        batch_size=1,
        workers=0,
    )
    plain = Embedder.load(untrained_run, device="cpu", flip=True, heads=["A1", "I"])(FITTING)
    parts = [plain[:, :512], plain[:, 512:]]
    expected = np.concatenate([part / np.linalg.norm(part) for part in parts], axis=1)
    np.testing.assert_allclose(normalizing(FITTING), expected, rtol=1e-4, atol=1e-6)


def test_what_it_knows_of_its_model(embedder: Embedder, untrained_run: Path) -> None:
    """Fingerprint, size and preset are those of the checkpoint; a file does as well as a run."""
    file = untrained_run / "model.safetensors"
    assert embedder.fingerprint == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (embedder.height_px, embedder.width_px) == (HEIGHT, WIDTH)
    assert embedder.preset.model.backbone == "resnet18"
    assert embedder.checkpoint.path == file
    assert not embedder.network.training
    assert Embedder.load(str(file), device="cpu").fingerprint == embedder.fingerprint


def test_bfloat16_is_nearly_the_same(embedder: Embedder, untrained_run: Path) -> None:
    """Lower precision gives float32 rows in nearly the same direction."""
    fast, exact = (
        Embedder.load(untrained_run, device="cpu", precision="bf16")(FITTING),
        embedder(FITTING),
    )
    cosine = (fast @ exact.T) / np.linalg.norm(fast) / np.linalg.norm(exact)
    assert fast.dtype == np.float32
    assert cosine > 0.99


@pytest.mark.parametrize("path", ["nowhere", "nowhere.safetensors"])
def test_no_model(tmp_path: Path, path: str) -> None:
    """A run that is not there is an AirnetError, for libraries to catch."""
    with pytest.raises(AirnetError, match="does not exist"):
        Embedder.load(tmp_path / path)
    with pytest.raises(CheckpointError, match=r"nowhere.* can't be read: No such file"):
        model_fingerprint(tmp_path / path)


def test_importing_the_package_loads_no_torch() -> None:
    """`from airnet_cli import Embedder` loads it, `import airnet_cli` does not."""
    program = """
import json, sys
import airnet_cli
before = "torch" in sys.modules
from airnet_cli import Embedder
print(json.dumps([before, "torch" in sys.modules, Embedder.__name__, hasattr(airnet_cli, "x")]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert json.loads(done.stdout) == [False, True, "Embedder", False], done.stderr

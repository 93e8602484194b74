"""Exporting: checked before it is put into place, and the embedder gives the same vectors by it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airnet_cli.core.engines import Engine
from airnet_cli.core.gallery import read_gallery
from airnet_cli.errors import CheckpointError, DataError, RuntimeSetupError, UsageError
from airnet_cli.workflows.embed import embed
from airnet_cli.workflows.embed_parts import EmbedOptions
from airnet_cli.workflows.embedder import Embedder
from airnet_cli.workflows.export import ExportedNetwork, export

Exporting = Callable[..., ExportedNetwork]


@pytest.fixture
def run(exported_run: ExportedNetwork, tmp_path: Path) -> Path:
    """A run folder of the test's own, without an exported file."""
    run = tmp_path / "runs" / "demo"
    assert exported_run.model.run is not None
    shutil.copytree(exported_run.model.run, run)
    (run / "model.onnx").unlink()
    return run


@pytest.fixture
def crops(exported_run: ExportedNetwork) -> Path:
    """Four pictures."""
    return exported_run.path.parents[2] / "crops"


@pytest.fixture
def exporting(run: Path, crops: Path, quick_exporter: None, tmp_path: Path) -> Exporting:
    """Export that run, as it is or with other settings."""

    def call(**changed: Any) -> ExportedNetwork:
        values: dict[str, Any] = {
            "model": run,
            "runs_root": tmp_path / "runs",
            "kind": "onnx",
            "output": None,
            "images": [crops],
            "data_root": tmp_path / "data",
            "on_model": lambda _: None,
            "noted": lambda _: None,
        }
        return export(**values | changed)

    return call


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_beside_its_checkpoint(exported_run: ExportedNetwork, crops: Path) -> None:
    """One file, of this checkpoint, and what the comparison found on every picture and head."""
    run = exported_run.model.run
    assert run is not None
    assert exported_run.files == (run / "model.onnx",)
    assert names_in(run) == {"model.onnx", "model.safetensors", "preset.json", "scores.json"}
    embedder = Embedder.load(run, device="cpu")
    assert exported_run.description.fingerprint == embedder.fingerprint
    parity = exported_run.parity
    assert (parity.images, parity.source) == (4, f"'{crops}'")
    assert list(parity.heads) == ["A1", "A2", "I"]
    assert 0.99999 < parity.smallest_cosine <= parity.whole.smallest_cosine < 1.000001
    assert parity.whole.largest_difference == max(
        each.largest_difference for each in parity.heads.values()
    )


@pytest.mark.parametrize(
    ("heads", "flip"), [(None, False), (["I"], True)], ids=["whole", "one head, flipped"]
)
def test_the_embedder_by_onnx(
    exported_run: ExportedNetwork, crops: Path, heads: list[str] | None, flip: bool
) -> None:
    """The vectors of torch, whatever is done with them after the network."""
    paths = sorted(crops.iterdir())
    settings: dict[str, Any] = {"device": "cpu", "heads": heads, "flip": flip, "batch_size": 3}
    plain = Embedder.load(exported_run.model.checkpoint, **settings)
    quick = Embedder.load(exported_run.model.checkpoint, runtime="onnx", **settings)
    assert quick.heads == plain.heads
    assert quick.fingerprint == plain.fingerprint
    assert (plain.runtime, quick.runtime) == ("torch", exported_run.engine)
    assert cosines(plain(paths), quick(paths)).min() > 0.9999


def test_openvino(needs_openvino: None, exporting: Exporting, run: Path, crops: Path) -> None:
    """Two files, nothing of the ONNX graph; the same vectors, in float32."""
    exported = exporting(kind="openvino")
    assert [path.name for path in exported.files] == ["model.bin", "model.xml"]
    assert names_in(run) == {
        *("model.bin", "model.xml", "model.safetensors", "preset.json", "scores.json")
    }
    assert exported.parity.smallest_cosine > 0.99999
    paths = sorted(crops.iterdir())
    plain, quick = (
        Embedder.load(run, device="cpu", runtime=runtime) for runtime in ("torch", "openvino")
    )
    assert quick.runtime.startswith("openvino ")
    assert cosines(plain(paths), quick(paths)).min() > 0.9999
    bf16 = Embedder.load(run, runtime="openvino", precision="bf16")
    assert cosines(plain(paths), bf16(paths)).min() > 0.99


def test_elsewhere(exporting: Exporting, run: Path, crops: Path, tmp_path: Path) -> None:
    """With an output of its own the run stays as it is, and the embedder is told."""
    place = tmp_path / "new" / "folder" / "shop.onnx"
    assert exporting(output=place).path == place
    assert not (run / "model.onnx").exists()
    quick = Embedder.load(run, runtime="onnx", exported=place)
    assert quick(sorted(crops.iterdir())).shape == (4, quick.dimensions)


def test_pictures_of_the_data_set(exporting: Exporting, tiny_data_root: Path, run: Path) -> None:
    """Without pictures, queries of the run's own data set, up to 32 of them."""
    heard: list[str] = []
    data = run.parent.parent / "data"
    data.mkdir()
    (data / "demo").symlink_to(tiny_data_root / "tiny")
    exported = exporting(images=(), data_root=data, noted=heard.append)
    queries = len(list((tiny_data_root / "tiny" / "images" / "query").iterdir()))
    assert (exported.parity.images, exported.parity.source) == (
        min(32, queries),
        "the data set demo",
    )
    assert heard == [f"checked on {exported.parity.images} pictures of the data set demo"]


def test_drawn_pictures(exporting: Exporting) -> None:
    """Where that is not there either, people are drawn, and it is said."""
    heard: list[str] = []
    exported = exporting(images=(), noted=heard.append)
    assert exported.parity.images == 32
    assert "people who were drawn for it (the data set demo is not under" in heard[0]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(
            lambda vectors: vectors * torch.linspace(0.9, 1.1, vectors.shape[1]), id="far"
        ),
        pytest.param(lambda v: v * float("nan"), id="not a number"),
    ],
)
def test_an_engine_that_computes_something_else(
    exporting: Exporting,
    run: Path,
    spoil: Callable[[torch.Tensor], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is left, and what was there before stays."""
    (run / "model.onnx").write_text("the one before")
    right = Engine.embed
    monkeypatch.setattr(Engine, "embed", lambda engine, images: spoil(right(engine, images)))
    with pytest.raises(RuntimeSetupError, match=r"onnxruntime .* does not compute what torch does"):
        exporting()
    assert (run / "model.onnx").read_text() == "the one before"
    assert names_in(run) == {"model.onnx", "model.safetensors", "preset.json", "scores.json"}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"output": Path("m.xml")}, UsageError, "output 'm.xml' must end in .onnx for onnx"),
        ({"model": Path("nowhere")}, CheckpointError, "'nowhere' does not exist"),
        ({"images": [Path("none.jpg")]}, DataError, "none.jpg"),
    ],
    ids=["suffix", "no run", "no picture"],
)
def test_what_can_not_be_exported(
    exporting: Exporting, run: Path, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    """One line, and no file."""
    with pytest.raises(error, match=message):
        exporting(**changed)
    assert not (run / "model.onnx").exists()


def test_what_a_killed_export_left_is_removed(exporting: Exporting, run: Path) -> None:
    """By the next one."""
    left = run / ".model.onnx.abcdefgh.part"
    left.mkdir()
    (left / "model.onnx").write_text("half")
    exporting()
    assert names_in(run) == {"model.onnx", "model.safetensors", "preset.json", "scores.json"}


def test_the_file_of_another_checkpoint(
    exported_run: ExportedNetwork, run: Path, tiny_run: Path
) -> None:
    """Refused, with both fingerprints."""
    shutil.copyfile(tiny_run / "model.safetensors", run / "model.safetensors")
    shutil.copyfile(exported_run.path, run / "model.onnx")
    with pytest.raises(CheckpointError, match="was exported from the checkpoint"):
        Embedder.load(run, runtime="onnx")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"runtime": "onnx"},
            CheckpointError,
            "onnx', which does not exist; write it with",
        ),
        ({"runtime": "onnx", "device": "cuda"}, RuntimeSetupError, "on the CPU, not on 'cuda'"),
        ({"runtime": "onnx", "precision": "bf16"}, RuntimeSetupError, "computes in fp32"),
        ({"exported": "m.onnx"}, UsageError, "'m.onnx' is for the runtime onnx or openvino"),
    ],
    ids=["not exported", "device", "precision", "torch"],
)
def test_what_an_embedder_can_not_do(
    run: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Never another runtime instead of the one that was asked for."""
    with pytest.raises(error, match=message):
        Embedder.load(run, **settings)


def embed_crops(run: Path, crops: Path, output: Path, **changed: Any) -> Any:
    values: dict[str, Any] = {
        "inputs": (crops,), "data_root": Path("data"), "output": output, "model": run,
        "runs_root": Path("runs"), "batch_size": 2, "device": "cpu",
    }  # fmt: skip
    return embed(EmbedOptions(**values | changed))


def test_a_gallery_by_onnx(exporting: Exporting, run: Path, crops: Path, tmp_path: Path) -> None:
    """The rows of torch's, of the same model; the record names what computed them."""
    exported = exporting()
    plain = embed_crops(run, crops, tmp_path / "torch.npy")
    quick = embed_crops(run, crops, tmp_path / "onnx.npy", runtime="onnx")
    assert (plain.record["runtime"], quick.record["runtime"]) == ("torch", exported.engine)
    assert quick.record["fingerprint"] == plain.record["fingerprint"]
    rows = [read_gallery(tmp_path / name).embeddings for name in ("torch.npy", "onnx.npy")]
    assert cosines(*map(np.asarray, rows)).min() > 0.9999

"""Embedding into a gallery: in step with its table, resumable, and the same numbers as evaluate."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from airnet_cli.core.gallery import read_gallery
from airnet_cli.errors import AirnetError, CheckpointError, DataError, OutputError, UsageError
from airnet_cli.workflows.embed import EmbeddedGallery, embed
from airnet_cli.workflows.embedder import Embedder
from airnet_cli.workflows.evaluate import EvaluateOptions, evaluate, evaluate_features


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with five crops in `gallery/` and a table of them."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    (tmp_path / "gallery").mkdir()
    rows = []
    for number in range(5):
        pixels = random.integers(0, 256, (40, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "gallery" / f"{number}.png")
        rows.append(f"gallery/{number}.png,{number % 2},{number}\n")
    (tmp_path / "shop.csv").write_text("path,person_id,camera_id\n" + "".join(rows))
    return tmp_path


def run_embed(run: Path | None, *inputs: str, **settings: Any) -> EmbeddedGallery:
    return embed(
        **{
            "inputs": [Path(each) for each in inputs],
            "data_name": None,
            "split": None,
            "data_root": Path("data"),
            "output": Path("gallery.npy"),
            "model": run,
            "runs_root": Path("runs"),
            "dtype": "float32",
            "heads": None,
            "flip": False,
            "batch_size": 2,
            "workers": 0,
            "device": "cpu",
            "precision": "fp32",
            "on_bad_image": "error",
            "resume": False,
            "on_model": lambda _: None,
            "noted": lambda _: None,
            **settings,
        }
    )


def contents(path: Path) -> list[bytes]:
    return [path.with_suffix(suffix).read_bytes() for suffix in (".npy", ".csv", ".json")]


def stop_after(images: int) -> Any:
    """A progress callback that presses Ctrl-C."""

    def progress(stage: str, done: int, total: int | None, unit: str) -> None:
        if done == images:
            raise KeyboardInterrupt

    return progress


def test_a_folder(shop: Path, untrained_run: Path) -> None:
    """Each row is the embedding of the image that its line names; the record says what made it."""
    embedded = run_embed(untrained_run, "gallery")
    gallery = read_gallery(Path("gallery.npy"))
    assert gallery.columns == {"path": tuple(f"gallery/{number}.png" for number in range(5))}
    embedder = Embedder.load(untrained_run, device="cpu")
    for row in range(5):
        expected = embedder(gallery.image_path(row))
        np.testing.assert_allclose(
            gallery.embeddings[row : row + 1], expected, rtol=1e-4, atol=1e-5
        )
    assert gallery.heads == embedder.heads
    assert gallery.record == embedded.record | {"skipped": []}
    expected_record = {
        "fingerprint": embedder.fingerprint,
        "checkpoint": str(untrained_run / "model.safetensors"),
        "run": untrained_run.name,
        "variant": "airnet",
        "backbone": "resnet18",
        "preprocessing": {
            "height_px": 64,
            "width_px": 32,
            "colour": "RGB",
            "interpolation": "bilinear, antialiased",
        },
        "flip": False,
        "precision": "fp32",
    }
    assert {key: gallery.record[key] for key in expected_record} == expected_record


def test_a_table_keeps_its_columns(shop: Path, untrained_run: Path) -> None:
    """Columns stay in step; the gallery may be written anywhere, its paths lead back."""
    run_embed(untrained_run, "shop.csv", output=Path("out/deep/g.npy"))
    gallery = read_gallery(Path("out/deep/g.npy"))
    assert gallery.columns["path"][0] == "../../gallery/0.png"
    assert gallery.columns["person_id"] == ("0", "1", "0", "1", "0")
    assert all(gallery.image_path(row).is_file() for row in range(5))


def test_settings_reach_the_file(shop: Path, untrained_run: Path) -> None:
    """Heads, flip and dtype are those of the file, and in its record."""
    embedded = run_embed(untrained_run, "gallery", heads=["I", "A1"], flip=True, dtype="float16")
    gallery = read_gallery(embedded.path)
    assert gallery.embeddings.dtype == np.float16
    assert gallery.heads == {"A1": slice(0, 512), "I": slice(512, 1024)}
    assert gallery.flip
    embedder = Embedder.load(untrained_run, device="cpu", heads=["A1", "I"], flip=True)
    expected = embedder([gallery.image_path(row) for row in range(5)])
    np.testing.assert_allclose(gallery.embeddings, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out(shop: Path, untrained_run: Path, workers: int) -> None:
    """Rows and table stay in step without them, and they are listed with reasons."""
    (shop / "gallery" / "1.png").write_bytes(b"")
    (shop / "gallery" / "3.png").unlink()
    embedded = run_embed(untrained_run, "shop.csv", on_bad_image="skip", workers=workers)
    gallery = read_gallery(embedded.path)
    assert gallery.columns["camera_id"] == ("0", "2", "4")
    embedder = Embedder.load(untrained_run, device="cpu")
    expected = embedder([f"gallery/{number}.png" for number in (0, 2, 4)])
    np.testing.assert_allclose(gallery.embeddings, expected, rtol=1e-4, atol=1e-5)
    assert gallery.record["skipped"] == [
        {"path": "gallery/1.png", "reason": "empty file"},
        {"path": "gallery/3.png", "reason": "no such file; was its folder moved?"},
    ]


def test_a_bad_image_stops_and_can_be_replaced(shop: Path, untrained_run: Path) -> None:
    """The work before it is not lost: repaired and resumed, the files are as if nothing was."""
    good = (shop / "gallery" / "3.png").read_bytes()
    times = (shop / "gallery" / "3.png").stat()
    run_embed(untrained_run, "gallery", output=Path("undisturbed.npy"))
    (shop / "gallery" / "3.png").write_bytes(good[:60])
    with pytest.raises(DataError, match=r"'gallery/3.png' can't be read: .*; replace it and add"):
        run_embed(untrained_run, "gallery")
    (shop / "gallery" / "3.png").write_bytes(good)
    os.utime(shop / "gallery" / "3.png", (times.st_atime, times.st_mtime))
    embedded = run_embed(untrained_run, "gallery", resume=True)
    assert (embedded.images_before, embedded.images) == (2, 3)
    assert contents(Path("gallery.npy")) == contents(Path("undisturbed.npy"))


@pytest.mark.parametrize("done", [2, 4])
def test_resumed_is_the_same_to_the_byte(shop: Path, untrained_run: Path, done: int) -> None:
    """Ctrl-C, then the same command with --resume: equal files, and a word about both."""
    (shop / "gallery" / "1.png").write_bytes(b"")
    notes: list[str] = []
    settings = {"on_bad_image": "skip", "noted": notes.append}
    run_embed(untrained_run, "shop.csv", output=Path("undisturbed.npy"), **settings)
    with pytest.raises(KeyboardInterrupt):
        run_embed(untrained_run, "shop.csv", progress=stop_after(done), **settings)
    assert notes.pop() == f"{done} images are done; go on with the same command and --resume"
    embedded = run_embed(untrained_run, "shop.csv", resume=True, **settings)
    assert notes == [f"going on after {done} of 5 images"]
    assert (embedded.images_before, embedded.images) == (done, 5 - done)
    assert contents(Path("gallery.npy")) == contents(Path("undisturbed.npy"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": True}, "differs in flip: it has false, this command true"),
        ({"heads": ["A1"]}, r'differs in heads: it has \["A1", "A2", "I"\], this command \["A1"\]'),
        ({"batch_size": 3}, "differs in batch size: it has 2, this command 3"),
        ({"precision": "bf16"}, "differs in precision"),
        ({"inputs": [Path("gallery"), Path("more.png")]}, "differs in images"),
    ],
    ids=["flip", "heads", "batch", "precision", "images"],
)
def test_another_job_is_not_gone_on_with(
    shop: Path, untrained_run: Path, settings: dict[str, Any], message: str
) -> None:
    """Other settings or images would give a gallery of two kinds of rows."""
    Image.new("RGB", (20, 40)).save("more.png")
    with pytest.raises(KeyboardInterrupt):
        run_embed(untrained_run, "gallery", progress=stop_after(2))
    with pytest.raises(DataError, match=message):
        run_embed(untrained_run, "gallery", resume=True, **settings)
    notes: list[str] = []
    run_embed(untrained_run, "gallery", noted=notes.append)
    assert notes == ["starting again: 2 images of a stopped job are embedded anew (no --resume)"]


def test_another_model_does_not_go_on(shop: Path, untrained_run: Path, tiny_run: Path) -> None:
    """The fingerprint of the checkpoint decides."""
    with pytest.raises(KeyboardInterrupt):
        run_embed(untrained_run, "gallery", progress=stop_after(2))
    with pytest.raises(DataError, match=r"differs in model: it has \w+, this command"):
        run_embed(tiny_run, "gallery", resume=True)


def test_features_score_as_the_run_does(
    tiny_run: Path, tiny_data_root: Path, tmp_path: Path
) -> None:
    """`evaluate` scores the features that embed wrote as it scores the run."""
    checkpoint = shutil.copy(tiny_run / "model.safetensors", tmp_path)
    for split in ("query", "gallery"):
        run_embed(
            Path(checkpoint),
            data_name="tiny",
            split=split,
            data_root=tiny_data_root,
            output=tmp_path / f"{split}.npy",
            batch_size=None,
        )
    run = evaluate(
        EvaluateOptions(
            model=Path(checkpoint),
            runs_root=tmp_path,
            data_name="tiny",
            data_root=tiny_data_root,
            device="cpu",
            workers=0,
        )
    )
    features = evaluate_features(
        query=tmp_path / "query.npy",
        gallery=tmp_path / "gallery.npy",
        metric="cosine",
        camera_filter=True,
    )
    assert "-1" not in read_gallery(tmp_path / "gallery.npy").columns["person_id"]
    assert features.whole.queries_counted == run.whole.queries_counted > 0
    assert features.whole.mAP == pytest.approx(run.whole.mAP, abs=1e-6)
    assert features.whole.cmc_at(1) == pytest.approx(run.whole.cmc_at(1), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"output": Path("gallery")}, UsageError, "must end in .npy, as in -o gallery.npy"),
        ({"inputs": [Path("nowhere")]}, DataError, "'nowhere' does not exist"),
        ({"model": Path("runs/none")}, CheckpointError, "'runs/none' does not exist"),
        ({"model": None}, CheckpointError, "no finished run under 'runs'; train one"),
        ({"heads": ["Q"]}, UsageError, "head Q: this network has A1, A2, I"),
        ({"output": Path("shop.csv/g.npy")}, OutputError, "can't write 'shop.csv/g.npy'"),
        ({"data_name": "x", "split": "query"}, DataError, "no data set 'x' under data"),
    ],
    ids=["output", "input", "model", "no run", "head", "place", "data"],
)
def test_what_can_not_be_done(
    shop: Path,
    untrained_run: Path,
    settings: dict[str, Any],
    error: type[AirnetError],
    message: str,
) -> None:
    """One line, and no files."""
    before = sorted(shop.rglob("*"))
    with pytest.raises(error, match=message) as raised:
        run_embed(untrained_run, "gallery", **settings)
    assert "\n" not in str(raised.value)
    assert sorted(shop.rglob("*")) == before


def test_json_shape(shop: Path, untrained_run: Path) -> None:
    """Version 1: programs read it; the times are parts of the total."""
    shape = run_embed(untrained_run, "gallery").to_dict()
    assert list(shape) == [
        "version",
        "gallery",
        "rows",
        "dimensions",
        "dtype",
        "fingerprint",
        "checkpoint",
        "run",
        "heads",
        "normalize_heads",
        "flip",
        "precision",
        "runtime",
        "skipped",
        "device",
        "images",
        "images_before",
        "images_per_second",
        "seconds",
    ]
    seconds = shape["seconds"]
    assert seconds["reading"] + seconds["network"] + seconds["writing"] == pytest.approx(
        seconds["total"]
    )
    assert shape["images_per_second"] == pytest.approx(5 / seconds["total"])
    assert json.loads(json.dumps(shape))["version"] == 1

"""Scores of runs and of features that other tools computed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from airnet_cli.core.checkpoint import read_checkpoint
from airnet_cli.core.data.manifest import load_prepared
from airnet_cli.core.inference import embed_images
from airnet_cli.errors import DataError
from airnet_cli.workflows.build import restore_network
from airnet_cli.workflows.evaluate import Evaluation, evaluate, evaluate_features


def _evaluate(run: Path | None, data_root: Path, **settings: object) -> Evaluation:
    return evaluate(
        **{  # type: ignore[arg-type]
            "model": run,
            "runs_root": data_root,
            "data_name": None,
            "data_root": data_root,
            "device": "cpu",
            "precision": "fp32",
            "batch_size": None,
            "workers": 0,
            "camera_filter": True,
            "on_model": lambda _: None,
            **settings,
        }
    )


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_evaluating_a_run_repeats_its_scores(run: Path, tiny_data_root: Path) -> None:
    """The checkpoint alone rebuilds the network: the scores are those of the end of training."""
    before = json.loads((run / "scores.json").read_text())
    (run / "scores.json").unlink()
    again = _evaluate(run, tiny_data_root)
    assert again.scores_path == run / "scores.json"
    after = json.loads((run / "scores.json").read_text())
    assert {key: after[key] for key in ("mAP", "mINP", "cmc", "queries")} == {
        key: before[key] for key in ("mAP", "mINP", "cmc", "queries")
    }
    assert after["protocol"]["training"] == before["protocol"]["training"]


def test_embeddings_do_not_depend_on_the_batch(tiny_run: Path, tiny_data_root: Path) -> None:
    """An image's embedding does not depend on its neighbours in the batch."""
    network, preset = restore_network(read_checkpoint(tiny_run / "model.safetensors"))
    manifest = load_prepared(tiny_data_root, "tiny")
    paths = [manifest.root / record.path for record in manifest.split("query")]
    one, many = (
        embed_images(
            network,
            paths,
            height_px=preset.data.height_px,
            width_px=preset.data.width_px,
            batch_size=size,
            workers=0,
            device=torch.device("cpu"),
            precision="fp32",
            normalize_heads=False,
        )
        for size in (3, 64)
    )
    assert len(one) == len(paths)
    torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-3 * float(many.abs().max()))


def test_each_head_is_scored_alone(run: Path, tiny_data_root: Path) -> None:
    """One row for each of A1, A2 and I, each its own ranking."""
    evaluation = _evaluate(run, tiny_data_root)
    assert list(evaluation.heads) == ["A1", "A2", "I"]
    assert len({scores.mAP for scores in evaluation.heads.values()}) > 1


def test_checkpoint_outside_of_a_run_writes_nothing(
    run: Path, tiny_data_root: Path, tmp_path: Path
) -> None:
    """A lone checkpoint is enough to evaluate; no file appears beside it."""
    lone = tmp_path / "lone" / "net.safetensors"
    lone.parent.mkdir()
    shutil.copy(run / "model.safetensors", lone)
    assert _evaluate(lone, tiny_data_root).scores_path is None
    assert list(lone.parent.iterdir()) == [lone]


def test_junk_is_not_embedded_and_counted_in_the_protocol(run: Path, tiny_data_root: Path) -> None:
    """Junk images are left out of the gallery; the record says how many."""
    data = _evaluate(run, tiny_data_root).protocol["data"]
    manifest = (tiny_data_root / "tiny" / "manifest.jsonl").read_text().splitlines()[1:]
    gallery = [line for line in map(json.loads, manifest) if line["split"] == "gallery"]
    junk = sum(line["person_id"] == -1 for line in gallery)
    assert junk > 0
    assert (data["junk_images"], data["gallery_images"]) == (junk, len(gallery) - junk)


def test_without_the_camera_filter_the_record_says_so(run: Path, tiny_data_root: Path) -> None:
    """Images of the own camera are easier answers; the protocol names the departure."""
    strict, loose = (
        _evaluate(run, tiny_data_root, camera_filter=camera_filter)
        for camera_filter in (True, False)
    )
    assert (strict.protocol["camera_filter"], loose.protocol["camera_filter"]) == (True, False)
    assert loose.whole.num_matches.sum() > strict.whole.num_matches.sum()


def test_data_that_was_never_prepared(run: Path, tiny_data_root: Path) -> None:
    """`--data` names what is there instead."""
    with pytest.raises(DataError, match="prepared there: tiny"):
        _evaluate(run, tiny_data_root, data_name="absent")


CASES = ("p1_tiny", "p2_clean", "p3_junk", "p4_nomatch", "p5_ties", "p6_market")


def _write_features(path: Path, features: np.ndarray, ids: np.ndarray, cams: np.ndarray) -> Path:
    np.save(path, features)
    rows = "".join(f"{i},{c}\n" for i, c in zip(ids, cams, strict=True))
    path.with_suffix(".csv").write_text("person_id,camera_id\n" + rows)
    return path


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("case", CASES)
def test_features_from_files_score_as_the_reference(
    golden_dir: Path, tmp_path: Path, case: str, metric: str
) -> None:
    """`--query Q.npy --gallery G.npy`: every golden case to 1e-6."""
    folder = golden_dir / "cases" / case
    labels = np.load(folder / "labels.npz")
    query = _write_features(
        tmp_path / "q.npy",
        np.load(folder / "query_features.npy"),
        labels["query_ids"],
        labels["query_cams"],
    )
    gallery = _write_features(
        tmp_path / "g.npy",
        np.load(folder / "gallery_features.npy"),
        labels["gallery_ids"],
        labels["gallery_cams"],
    )
    expected = json.loads((folder / "expected.json").read_text())["expected"][metric]["standard"]
    found = evaluate_features(
        query=query, gallery=gallery, metric=metric, camera_filter=True
    ).to_dict()  # type: ignore[arg-type]
    assert found["mAP"] == pytest.approx(expected["mAP"], abs=1e-6)
    assert found["mINP"] == pytest.approx(expected["mINP"], abs=1e-6)
    assert found["cmc"] == pytest.approx(expected["cmc"], abs=1e-6)
    assert found["queries"]["counted"] == expected["n_valid"]

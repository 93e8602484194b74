"""Scores of runs and of features that other tools computed."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airnet_cli.core.checkpoint import model_fingerprint, read_checkpoint, write_checkpoint
from airnet_cli.core.data.demo import generate
from airnet_cli.core.data.manifest import load_prepared, manifest_path, write_manifest
from airnet_cli.core.data.records import JUNK
from airnet_cli.core.data.transforms import read_image
from airnet_cli.core.inference import embed_images
from airnet_cli.core.retrieval.metrics import RetrievalScores, evaluate_retrieval
from airnet_cli.core.retrieval.protocol import LabelledFeatures, labels_of
from airnet_cli.core.retrieval.rerank import Reranking
from airnet_cli.errors import DataError, UsageError
from airnet_cli.workflows.build import restore_network
from airnet_cli.workflows.evaluate import (
    EvaluateOptions,
    Evaluation,
    evaluate,
    evaluate_features,
)


def _evaluate(run: Path | None, data_root: Path, **settings: Any) -> Evaluation:
    given = {"model": run, "runs_root": data_root, "data_root": data_root, "device": "cpu"}
    return evaluate(EvaluateOptions(**{**given, "workers": 0, **settings}))


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


def test_a_run_is_scored_by_its_own_protocol(run: Path, tiny_data_root: Path) -> None:
    """The preset's camera filter counts; scores by another one never replace scores.json."""
    path = run / "model.safetensors"
    checkpoint = read_checkpoint(path)
    network, preset = restore_network(checkpoint)
    values = preset.model_dump(mode="json")
    values["evaluation"]["camera_filter"] = False
    write_checkpoint(
        path,
        network,
        preset=values,
        height_px=preset.data.height_px,
        width_px=preset.data.width_px,
        identities=checkpoint.identities,
        training=checkpoint.training,
    )
    own = _evaluate(run, tiny_data_root)
    assert own.protocol["camera_filter"] is False
    assert own.scores_path == run / "scores.json"
    written = json.loads(own.scores_path.read_text())
    assert written["mAP"] == own.whole.mAP

    strict = _evaluate(run, tiny_data_root, camera_filter=True)
    assert strict.protocol["camera_filter"] is True
    assert strict.whole.num_matches.sum() < own.whole.num_matches.sum()
    assert strict.scores_path is None
    assert json.loads((run / "scores.json").read_text()) == written


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"heads": ["A1", "I"]}, id="heads"),
        pytest.param({"flip": True}, id="flip"),
        pytest.param({"rerank": True}, id="rerank"),
        pytest.param({"precision": "bf16"}, id="precision"),
        pytest.param({"camera_filter": False}, id="camera filter"),
    ],
)
def test_another_protocol_is_written_on_request(
    run: Path, tiny_data_root: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """scores.json stays; `-o` writes the scores, wherever that is."""
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert _evaluate(run, tiny_data_root, **settings).scores_path is None
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before
    output = tmp_path / "new" / "scores.json"
    found = _evaluate(run, tiny_data_root, **settings, output=output)
    assert found.scores_path == output
    assert json.loads(output.read_text()) == found.to_dict()


def test_a_stopped_run_is_not_finished_by_scores(run: Path, tiny_data_root: Path) -> None:
    """A run with scores.json counts as finished, so an unfinished one gets none."""
    (run / "scores.json").unlink()
    log = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(log[:-1]))
    assert _evaluate(run, tiny_data_root).scores_path is None
    assert not (run / "scores.json").exists()


@dataclass
class Embedded:
    """Query and gallery of `tiny`, embedded by hand."""

    queries: LabelledFeatures
    gallery: LabelledFeatures
    slices: dict[str, slice]

    def score(self, columns: list[int], **settings: Any) -> RetrievalScores:
        sides = (
            LabelledFeatures(side.embeddings[:, columns], side.labels)
            for side in (self.queries, self.gallery)
        )
        return evaluate_retrieval(*sides, metric="cosine", **settings)

    def columns(self, *heads: str) -> list[int]:
        return [i for head in heads for i in range(*self.slices[head].indices(10**6))]


def _embed_by_hand(run: Path, data_root: Path, *, mirrored: bool) -> Embedded:
    network, preset = restore_network(read_checkpoint(run / "model.safetensors"))
    network.eval()
    manifest = load_prepared(data_root, "tiny")
    size = {"height_px": preset.data.height_px, "width_px": preset.data.width_px}
    parts = []
    for split in ("query", "gallery"):
        records = [each for each in manifest.split(split) if each.person_id != JUNK]
        images = torch.stack(
            [read_image(manifest.root / record.path, **size) for record in records]
        )
        with torch.no_grad():
            vectors = network.embed(images)
            if mirrored:
                vectors = (vectors + network.embed(images.flip(3))) / 2
        parts.append(LabelledFeatures(vectors.numpy(), labels_of(records)))
    return Embedded(*parts, network.head_slices)


def test_flip_is_the_mean_of_image_and_mirror_image(
    untrained_run: Path, tiny_data_root: Path
) -> None:
    """Scores are those of averaged embeddings."""
    usual = _evaluate(untrained_run, tiny_data_root, data_name="tiny")
    found = _evaluate(untrained_run, tiny_data_root, data_name="tiny", flip=True)
    by_hand = _embed_by_hand(untrained_run, tiny_data_root, mirrored=True)
    everything = by_hand.columns("A1", "A2", "I")
    assert found.whole.mAP == pytest.approx(by_hand.score(everything).mAP, abs=1e-3)
    assert abs(found.whole.mAP - usual.whole.mAP) > 2e-3
    assert found.protocol["flip"] is True


@pytest.mark.parametrize(
    "heads", [("A1",), ("A1", "I"), ("I", "A1")], ids=["one", "two", "in another order"]
)
def test_chosen_heads_are_the_whole(
    untrained_run: Path, tiny_data_root: Path, heads: tuple[str, ...]
) -> None:
    """Their concatenation is scored, and each of them alone."""
    found = _evaluate(untrained_run, tiny_data_root, data_name="tiny", heads=heads)
    by_hand = _embed_by_hand(untrained_run, tiny_data_root, mirrored=False)
    columns = by_hand.columns(*sorted(heads))
    assert found.whole.mAP == pytest.approx(by_hand.score(columns).mAP, abs=1e-3)
    assert list(found.heads) == found.protocol["heads"] == sorted(heads)
    assert found.protocol["embedding_size"] == len(columns)


@pytest.mark.parametrize("heads", [["A3"], []], ids=["unknown", "none"])
def test_heads_that_are_not_there(run: Path, tiny_data_root: Path, heads: list[str]) -> None:
    """The message names those that are."""
    with pytest.raises(UsageError, match="this network has A1, A2, I"):
        _evaluate(run, tiny_data_root, heads=heads)


def test_a_calibration_is_of_all_heads(run: Path, tiny_data_root: Path) -> None:
    """`match` reads it for the whole embedding."""
    with pytest.raises(UsageError, match="leave --heads out"):
        _evaluate(run, tiny_data_root, heads=["A1"], calibrate=True)


def test_re_ranking_a_run(untrained_run: Path, tiny_data_root: Path) -> None:
    """The whole and each head are re-ranked; the record has the parameters."""
    found = _evaluate(untrained_run, tiny_data_root, data_name="tiny", rerank=True)
    by_hand = _embed_by_hand(untrained_run, tiny_data_root, mirrored=False)
    for name, scores in found.heads.items():
        expected = by_hand.score(by_hand.columns(name), reranking=Reranking())
        assert scores.mAP == pytest.approx(expected.mAP, abs=5e-3)
    assert found.protocol["rerank"] == {"k1": 20, "k2": 6, "original_weight": 0.3}


def test_single_queries_as_a_table(run: Path, tiny_data_root: Path, tmp_path: Path) -> None:
    """A line per query, from which all scores can be computed again."""
    table = tmp_path / "new" / "queries.csv"
    found = _evaluate(run, tiny_data_root, per_query=table)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    records = load_prepared(tiny_data_root, "tiny").split("query")
    assert [(row["path"], int(row["person_id"]), int(row["camera_id"])) for row in rows] == [
        (record.path, record.person_id, record.camera_id) for record in records
    ]
    counted = [row for row in rows if row["num_matches"] != "0"]
    assert np.mean([float(row["AP"]) for row in counted]) == pytest.approx(found.whole.mAP)
    for row in counted:
        ranks = [int(rank) for rank in row["match_ranks"].split()]
        assert len(ranks) == int(row["num_matches"])
        assert ranks[0] == int(row["first_match_rank"])
        assert len(ranks) / ranks[-1] == float(row["INP"])


def test_another_data_set(run: Path, tiny_data_root: Path, tmp_path: Path) -> None:
    """Across data sets: scored where it was not trained; scores.json stays."""
    usual = (run / "scores.json").read_bytes()
    images = tmp_path / "data" / "other" / "images"
    records = generate(images, seed=9, train_identities=2, test_identities=3, processes=1)
    path = manifest_path(tmp_path / "data", "other")
    write_manifest(path, name="other", root=images, records=records, split_rule="drawn for tests")
    found = _evaluate(run, tmp_path / "data", data_name="other")
    assert found.scores_path is None
    assert found.protocol["data"]["name"] == "other"
    assert found.protocol["training"]["data"] == "tiny"
    assert found.whole.queries_total == sum(record.split == "query" for record in records)

    # Other images under the name of the run's own data set.
    path = manifest_path(tmp_path / "data", "tiny")
    write_manifest(path, name="tiny", root=images, records=records, split_rule="drawn for tests")
    assert _evaluate(run, tmp_path / "data").scores_path is None
    assert (run / "scores.json").read_bytes() == usual


def test_the_protocol_of_the_record(run: Path, tiny_data_root: Path) -> None:
    """What one must know to compare the numbers: counts, file, selection, how it was embedded."""
    protocol = _evaluate(run, tiny_data_root, batch_size=7).protocol
    gallery = load_prepared(tiny_data_root, "tiny").split("gallery")
    assert protocol["data"]["distractor_images"] == sum(each.person_id == 0 for each in gallery)
    assert protocol["fingerprint"] == model_fingerprint(run / "model.safetensors")
    assert protocol["selection"] == "last"
    assert protocol["training"]["seed"] == 1
    assert (protocol["batch_size"], protocol["precision"]) == (7, "fp32")
    assert protocol["heads"] == protocol["network_heads"] == ["A1", "A2", "I"]
    trained = json.loads((run / "scores.json").read_text())["protocol"]
    assert trained["data"]["sha256"] == protocol["data"]["sha256"]


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


def test_features_from_files_are_re_ranked(golden_dir: Path, tmp_path: Path) -> None:
    """`--rerank` gives the scores of the authors' code; `--per-query` names no unknown paths."""
    folder = golden_dir / "cases" / "p4_nomatch"
    labels = np.load(folder / "labels.npz")
    features = {
        name: _write_features(
            tmp_path / f"{name}.npy",
            np.load(folder / f"{name}_features.npy"),
            labels[f"{name}_ids"],
            labels[f"{name}_cams"],
        )
        for name in ("query", "gallery")
    }
    table = tmp_path / "queries.csv"
    found = evaluate_features(
        **features, metric="cosine", camera_filter=True, rerank=True, per_query=table
    )
    variants = json.loads((folder / "expected.json").read_text())["rerank"]
    expected = variants["zhong_ranklist_f64/euclidean_l2norm"]
    assert found.whole.mAP == pytest.approx(expected["mAP"], abs=1e-6)
    assert found.protocol["rerank"] == {"k1": 20, "k2": 6, "original_weight": 0.3}
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == len(labels["query_ids"])
    assert {row["path"] for row in rows} == {""}
    empty = [row for row in rows if row["num_matches"] == "0"]
    assert len(empty) == len(rows) - expected["n_valid"] > 0
    assert {row["AP"] + row["INP"] + row["first_match_rank"] + row["match_ranks"]
            for row in empty} == {""}  # fmt: skip


def test_re_ranking_is_by_cosine(tmp_path: Path) -> None:
    """Two options that contradict each other."""
    with pytest.raises(UsageError, match="by cosine, not euclidean"):
        evaluate_features(
            query=tmp_path / "q.npy",
            gallery=tmp_path / "g.npy",
            metric="euclidean",
            camera_filter=True,
            rerank=True,
        )

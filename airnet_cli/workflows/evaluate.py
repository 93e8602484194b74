"""Score a run, a checkpoint, or any tool's features, by the protocol of docs/method.md."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from airnet_cli.config.schema import Preset
from airnet_cli.core.checkpoint import library_versions, model_fingerprint, read_checkpoint
from airnet_cli.core.data.manifest import Manifest, load_prepared
from airnet_cli.core.data.records import JUNK, ImageRecord
from airnet_cli.core.files import write_json
from airnet_cli.core.inference import embed_images
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.calibration import (
    Calibration,
    ScoreCalibration,
    calibrate,
    calibration_path,
    write_calibration,
)
from airnet_cli.core.retrieval.features import read_features
from airnet_cli.core.retrieval.metrics import RetrievalScores, evaluate_retrieval
from airnet_cli.core.runtime import (
    DeviceName,
    PrecisionName,
    choose_device,
    keep_freed_memory,
)
from airnet_cli.errors import DataError
from airnet_cli.workflows.build import restore_network
from airnet_cli.workflows.runs import SCORES, Model, find_model

JSON_VERSION = 1
RANKS = (1, 5, 10, 20)
"""The CMC ranks that are reported."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one retrieval problem, and how they were made."""

    whole: RetrievalScores
    """Of the whole embedding."""
    heads: dict[str, RetrievalScores]
    """Of each head's slice alone; empty for features of other tools."""
    protocol: dict[str, Any]
    """What one must know to compare the numbers."""
    model: Model | None
    """Where the network came from; None for features."""
    scores_path: Path | None
    """Where the scores were written, if they were."""
    calibration: Calibration | None = None
    """What the scores of pairs mean, where that was asked for."""
    calibration_path: Path | None = None
    """Where the calibration was written, if it was."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape (docs/formats.md); fractions, not percent."""
        calibration = (
            {} if self.calibration is None else {"calibration": self.calibration.to_dict()}
        )
        return {
            "version": JSON_VERSION,
            **_scores_dict(self.whole),
            "heads": {name: _scores_dict(scores) for name, scores in self.heads.items()},
            "protocol": self.protocol,
            **calibration,
        }


def evaluate(
    *,
    model: Path | None,
    runs_root: Path,
    data_name: str | None,
    data_root: Path,
    device: DeviceName,
    precision: PrecisionName,
    batch_size: int | None,
    workers: int,
    camera_filter: bool,
    on_model: Callable[[Model], None],
    with_calibration: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Score a run folder or checkpoint on query and gallery of a prepared data set.

    Without `model` the newest finished run under `runs_root`; without `data_name` the data set it
    was trained on; `on_model` hears which model it is before the work starts. A run's scores on
    its own data set are written into it, as `scores.json`. With `with_calibration` the meaning of
    scores is measured too and written beside the checkpoint, for `match`.

    Raises:
        CheckpointError: no such run or checkpoint, or no place for the calibration beside it.
        DataError: the data set is not prepared, or has no query or gallery images.
        EvaluationError: no query has a right answer.
    """
    found = find_model(model, runs_root)
    on_model(found)
    keep_freed_memory()
    checkpoint = read_checkpoint(found.checkpoint)
    network, preset = restore_network(checkpoint)
    manifest = load_prepared(data_root, data_name or preset.data.name)
    chosen = choose_device(device)
    evaluation = score_network(
        network.to(chosen),
        preset,
        manifest,
        device=chosen,
        precision=precision,
        batch_size=batch_size or preset.evaluation.batch_size,
        workers=workers,
        model=found,
        training=checkpoint.training,
        camera_filter=camera_filter,
        calibrate_as=model_fingerprint(found.checkpoint) if with_calibration else None,
        progress=progress,
    )
    path = None
    if found.run is not None:
        is_own = manifest.name == preset.data.name
        path = found.run / (SCORES if is_own else f"scores-{manifest.name}.json")
        write_json(path, replace(evaluation, calibration=None).to_dict())  # it has its own file
    if evaluation.calibration is None:
        return replace(evaluation, scores_path=path)
    beside = calibration_path(found.checkpoint)
    write_calibration(beside, evaluation.calibration)
    return replace(evaluation, scores_path=path, calibration_path=beside)


def evaluate_features(
    *,
    query: Path,
    gallery: Path,
    metric: Literal["cosine", "euclidean"],
    camera_filter: bool,
    progress: Progress = silent,
) -> Evaluation:
    """Score features that any tool computed: `Q.npy` with `Q.csv` beside it, the same for the
    gallery.

    Raises:
        DataError: files missing, broken, or not in step.
        EvaluationError: no query has a right answer, or the widths differ.
    """
    queries, galleries = read_features(query), read_features(gallery)
    scores = evaluate_retrieval(
        query_embeddings=queries.embeddings,
        gallery_embeddings=galleries.embeddings,
        query_person_ids=queries.person_ids,
        query_camera_ids=queries.camera_ids,
        gallery_person_ids=galleries.person_ids,
        gallery_camera_ids=galleries.camera_ids,
        metric=metric,
        camera_filter=camera_filter,
        progress=progress,
    )
    protocol = {
        "features": {"query": str(query), "gallery": str(gallery)},
        "embedding_size": queries.embeddings.shape[1],
        **_protocol(metric, galleries.person_ids, camera_filter),
    }
    return Evaluation(scores, {}, protocol, None, None)


def score_network(
    network: AirNet,
    preset: Preset,
    manifest: Manifest,
    *,
    device: torch.device,
    precision: PrecisionName,
    batch_size: int,
    workers: int,
    model: Model | None,
    training: dict[str, Any],
    camera_filter: bool = True,
    calibrate_as: str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Embed query and gallery of `manifest` with `network` and score the whole and each head.

    With `calibrate_as`, the checkpoint's fingerprint, the scores of pairs are calibrated too.
    """
    check_scorable(manifest)
    queries, gallery = manifest.split("query"), _without_junk(manifest)

    def embed(records: Sequence[ImageRecord], stage: str) -> Tensor:
        return embed_images(
            network,
            [manifest.root / record.path for record in records],
            height_px=preset.data.height_px,
            width_px=preset.data.width_px,
            batch_size=batch_size,
            workers=workers,
            device=device,
            precision=precision,
            normalize_heads=preset.evaluation.normalize_heads,
            stage=stage,
            progress=progress,
        )

    query_embeddings, gallery_embeddings = embed(queries, "query"), embed(gallery, "gallery")

    query_person_ids, query_camera_ids = _person_ids(queries), _camera_ids(queries)
    gallery_person_ids, gallery_camera_ids = _person_ids(gallery), _camera_ids(gallery)

    def score(part: slice) -> RetrievalScores:
        return evaluate_retrieval(
            query_embeddings=query_embeddings[:, part],
            gallery_embeddings=gallery_embeddings[:, part],
            query_person_ids=query_person_ids,
            query_camera_ids=query_camera_ids,
            gallery_person_ids=gallery_person_ids,
            gallery_camera_ids=gallery_camera_ids,
            metric="cosine",
            camera_filter=camera_filter,
        )

    whole = score(slice(None))
    slices = network.head_slices
    # A single head is the whole embedding: not computed twice.
    heads = {name: whole if len(slices) == 1 else score(part) for name, part in slices.items()}
    protocol = {
        "data": {
            "name": manifest.name,
            "split_rule": manifest.split_rule,
            "query_images": len(queries),
            "gallery_images": len(gallery),
            "junk_images": len(manifest.split("gallery")) - len(gallery),
        },
        "variant": preset.model.variant,
        "backbone": preset.model.backbone,
        "height_px": preset.data.height_px,
        "width_px": preset.data.width_px,
        "embedding_size": network.embedding_size,
        "normalize_heads": preset.evaluation.normalize_heads,
        "precision": precision,
        "device": device.type,
        "training": training,
        "selection": "last",
        **_protocol("cosine", gallery_person_ids, camera_filter),
    }
    evaluation = Evaluation(whole, heads, protocol, model, None)
    if calibrate_as is None:
        return evaluation

    def measure(part: slice) -> ScoreCalibration:
        return calibrate(
            query_embeddings=query_embeddings[:, part],
            gallery_embeddings=gallery_embeddings[:, part],
            query_person_ids=query_person_ids,
            query_camera_ids=query_camera_ids,
            gallery_person_ids=gallery_person_ids,
            gallery_camera_ids=gallery_camera_ids,
            camera_filter=camera_filter,
            progress=progress,
        )

    meaning = measure(slice(None))
    calibration = Calibration(
        fingerprint=calibrate_as,
        data=manifest.name,
        camera_filter=camera_filter,
        precision=precision,
        normalize_heads=preset.evaluation.normalize_heads,
        flip=False,
        whole=meaning,
        heads={
            name: meaning if len(slices) == 1 else measure(part) for name, part in slices.items()
        },
    )
    return replace(evaluation, calibration=calibration)


def check_scorable(manifest: Manifest) -> None:
    """Refuse a data set on which nothing can be scored.

    Raises:
        DataError: it has no query or no gallery images.
    """
    queries, gallery = len(manifest.split("query")), len(_without_junk(manifest))
    if not queries or not gallery:
        raise DataError(
            f"data set '{manifest.name}' has {queries} query and {gallery} gallery images; "
            "an evaluation needs both"
        )


def _without_junk(manifest: Manifest) -> list[ImageRecord]:
    return [record for record in manifest.split("gallery") if record.person_id != JUNK]


def _protocol(metric: str, gallery_person_ids: np.ndarray, camera_filter: bool) -> dict[str, Any]:
    return {
        "metric": metric,
        "ranked_gallery_images": int((gallery_person_ids != JUNK).sum()),
        "camera_filter": camera_filter,
        "flip": False,
        "rerank": False,
        "mAP": "mean of the precisions at the right answers",
        "mAP_trapezoid": "mean of the precisions before and at the right answers (official code)",
        "ties": "the lower gallery row first",
        "versions": library_versions(),
    }


def _scores_dict(scores: RetrievalScores) -> dict[str, Any]:
    return {
        "mAP": scores.mAP,
        "mAP_trapezoid": scores.mAP_trapezoid,
        "mINP": scores.mINP,
        "cmc": {str(rank): scores.cmc_at(rank) for rank in RANKS},
        "queries": {
            "total": scores.queries_total,
            "counted": scores.queries_counted,
            "not_counted": asdict(scores.queries_not_counted),
        },
    }


def _person_ids(records: Sequence[ImageRecord]) -> np.ndarray:
    return np.array([record.person_id for record in records])


def _camera_ids(records: Sequence[ImageRecord]) -> np.ndarray:
    return np.array([record.camera_id for record in records])

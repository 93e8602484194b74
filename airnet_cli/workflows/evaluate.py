"""Score a run, a checkpoint, or any tool's features, by the protocol of docs/method.md."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from airnet_cli.config.schema import Preset
from airnet_cli.core.checkpoint import library_versions, model_fingerprint, read_checkpoint
from airnet_cli.core.data.manifest import Manifest, load_prepared
from airnet_cli.core.data.records import DISTRACTOR, JUNK, ImageRecord
from airnet_cli.core.files import write_json
from airnet_cli.core.inference import embed_images
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.retrieval.calibration import (
    Calibration,
    calibrate,
    calibration_path,
    write_calibration,
)
from airnet_cli.core.retrieval.features import read_features
from airnet_cli.core.retrieval.metrics import (
    RetrievalScores,
    check_right_answers,
    evaluate_retrieval,
)
from airnet_cli.core.retrieval.per_query import write_per_query
from airnet_cli.core.retrieval.rerank import Reranking
from airnet_cli.core.runtime import (
    DeviceName,
    PrecisionName,
    choose_device,
)
from airnet_cli.errors import DataError, EvaluationError, UsageError
from airnet_cli.workflows.build import restore_network
from airnet_cli.workflows.embedder import choose_heads
from airnet_cli.workflows.runs import SCORES, Model, find_model

JSON_VERSION = 1
RANKS = (1, 5, 10, 20)
"""The CMC ranks that are reported."""
CURVE_RANKS = 50
"""The CMC curve is recorded from rank 1 to this one."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one retrieval problem, and how they were made."""

    whole: RetrievalScores
    """Of the whole embedding, or of the chosen heads together."""
    heads: dict[str, RetrievalScores]
    """Of each of these heads' slice alone; empty for features of other tools."""
    protocol: dict[str, Any]
    """What one must know to compare the numbers."""
    model: Model | None
    """Where the network came from; None for features."""
    scores_path: Path | None
    """Where the scores were written, if they were."""
    query_paths: tuple[str, ...] | None
    """The images of the queries, as the data set's manifest or table names them."""
    query_person_ids: np.ndarray
    """(Q,)"""
    query_camera_ids: np.ndarray
    """(Q,)"""
    per_query_path: Path | None = None
    """Where the table of single queries was written, if it was."""
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
    heads: Sequence[str] | None = None,
    flip: bool = False,
    rerank: bool = False,
    per_query: Path | None = None,
    with_calibration: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Score a run folder or checkpoint on query and gallery of a prepared data set.

    Without `model` the newest finished run under `runs_root`; without `data_name` the data set it
    was trained on; `on_model` hears which model it is before the work starts. A run's scores are
    written into it: those on its own data set by the usual protocol as `scores.json`, others under
    a name that says what they are (`scores_name`). With `with_calibration` the meaning of scores is
    measured too and written beside the checkpoint, for `match`.

    Args:
        model: A run folder or checkpoint.
        runs_root: The folder of runs.
        data_name: A prepared data set.
        data_root: The folder of prepared data sets.
        device: Where to embed.
        precision: In what to embed.
        batch_size: Images at once; the preset's if None.
        workers: Processes that decode images.
        camera_filter: Whether images by the query's own camera are ignored.
        on_model: Called with the model before it is read.
        heads: Score these heads' concatenation as the whole; None for all.
        flip: Embed each image as the mean of picture and mirror image.
        rerank: Rank by k-reciprocal neighbours, with the published parameters.
        per_query: Write a table of single queries here.
        with_calibration: Measure and keep what the scores of pairs mean.
        progress: Told about each stage.

    Raises:
        UsageError: the network lacks one of `heads`, or they were to be calibrated.
        CheckpointError: no such run or checkpoint, or no place for the calibration beside it.
        DataError: the data set is not prepared, or has no query or gallery images.
        EvaluationError: no query has a right answer.
    """
    if with_calibration and heads is not None:
        raise UsageError(
            "a calibration measures the whole embedding and each head; leave the choice of heads "
            "out"
        )
    found = find_model(model, runs_root)
    on_model(found)
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
        heads=heads,
        flip=flip,
        reranking=Reranking() if rerank else None,
        with_calibration=with_calibration,
        progress=progress,
    )
    if found.run is not None:
        path = found.run / scores_name(evaluation.protocol, own_data=preset.data.name)
        write_json(path, replace(evaluation, calibration=None).to_dict())  # it has its own file
        evaluation = replace(evaluation, scores_path=path)
    evaluation = _write_per_query(evaluation, per_query)
    if evaluation.calibration is None:
        return evaluation
    beside = calibration_path(found.checkpoint)
    write_calibration(beside, evaluation.calibration)
    return replace(evaluation, calibration_path=beside)


def scores_name(protocol: Mapping[str, Any], *, own_data: str) -> str:
    """The file of scores in a run folder: `scores.json` for the usual protocol on its own data.

    Other scores have their own file, so that they never stand where the usual ones are looked for.

    >>> usual = {"data": {"name": "a"}, "heads": ["A1", "I"], "network_heads": ["A1", "I"],
    ...          "flip": False, "rerank": False, "camera_filter": True, "precision": "fp32"}
    >>> scores_name(usual, own_data="a")
    'scores.json'
    >>> scores_name(usual, own_data="b")
    'scores-a.json'
    >>> scores_name(usual | {"flip": True, "heads": ["I"]}, own_data="a")
    'scores.I.flip.json'
    """
    name = Path(SCORES).stem
    if protocol["data"]["name"] != own_data:
        name += f"-{protocol['data']['name']}"
    departures = {
        "+".join(protocol["heads"]): protocol["heads"] != protocol["network_heads"],
        "flip": protocol["flip"],
        "rerank": protocol["rerank"],
        "no-camera-filter": not protocol["camera_filter"],
        protocol["precision"]: protocol["precision"] != "fp32",
    }
    return ".".join([name, *(word for word, departs in departures.items() if departs), "json"])


def evaluate_features(
    *,
    query: Path,
    gallery: Path,
    metric: Literal["cosine", "euclidean"],
    camera_filter: bool,
    rerank: bool = False,
    per_query: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Score features that any tool computed: `Q.npy` with `Q.csv` beside it, the same for the
    gallery.

    Raises:
        UsageError: they are to be re-ranked by another metric than cosine.
        DataError: files missing, broken, or not in step.
        EvaluationError: no query has a right answer, or the widths differ.
    """
    if rerank and metric != "cosine":
        raise UsageError(f"re-ranking compares by cosine, not {metric}; leave one of them out")
    reranking = Reranking() if rerank else None
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
        reranking=reranking,
        progress=progress,
    )
    protocol = {
        "features": {"query": str(query), "gallery": str(gallery)},
        "embedding_size": queries.embeddings.shape[1],
        **_protocol(metric, galleries.person_ids, camera_filter, reranking, flip=False),
    }
    evaluation = Evaluation(
        whole=scores,
        heads={},
        protocol=protocol,
        model=None,
        scores_path=None,
        query_paths=queries.paths,
        query_person_ids=queries.person_ids,
        query_camera_ids=queries.camera_ids,
    )
    return _write_per_query(evaluation, per_query)


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
    heads: Sequence[str] | None = None,
    flip: bool = False,
    reranking: Reranking | None = None,
    with_calibration: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Embed query and gallery of `manifest` with `network` and score the whole and each head.

    `heads` alone, where they are given, are the whole. `model` names the file that holds the
    network; with it and `with_calibration` the scores of pairs are calibrated too.

    Raises:
        UsageError: the network lacks one of `heads`.
        DataError: there is no query or gallery image, or one can't be read.
        EvaluationError: no query has a right answer.
    """
    slices = choose_heads(network.head_slices, heads)
    check_scorable(manifest, camera_filter=camera_filter)
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
            heads=heads,
            flip=flip,
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
            reranking=reranking,
            progress=progress,
        )

    whole = score(slice(None))
    # A single head is the whole embedding: not computed twice.
    alone = {name: whole if len(slices) == 1 else score(part) for name, part in slices.items()}
    fingerprint = None if model is None else model_fingerprint(model.checkpoint)
    protocol = {
        "data": {
            "name": manifest.name,
            "split_rule": manifest.split_rule,
            "query_images": len(queries),
            "gallery_images": len(gallery),
            "distractor_images": int((gallery_person_ids == DISTRACTOR).sum()),
            "junk_images": len(manifest.split("gallery")) - len(gallery),
            "sha256": _fingerprint([*queries, *gallery]),
        },
        "fingerprint": fingerprint,
        "variant": preset.model.variant,
        "backbone": preset.model.backbone,
        "height_px": preset.data.height_px,
        "width_px": preset.data.width_px,
        "embedding_size": query_embeddings.shape[1],
        "heads": list(slices),
        "network_heads": list(network.head_slices),
        "normalize_heads": preset.evaluation.normalize_heads,
        "precision": precision,
        "batch_size": batch_size,
        "device": device.type,
        "training": training,
        # Which epoch was taken, and by whose scores; the last one unless training says otherwise.
        "selection": training.get("selection", "last"),
        **_protocol("cosine", gallery_person_ids, camera_filter, reranking, flip=flip),
    }
    evaluation = Evaluation(
        whole=whole,
        heads=alone,
        protocol=protocol,
        model=model,
        scores_path=None,
        query_paths=tuple(record.path for record in queries),
        query_person_ids=query_person_ids,
        query_camera_ids=query_camera_ids,
    )
    if not with_calibration or fingerprint is None:
        return evaluation

    meaning, meanings = calibrate(
        query_embeddings=query_embeddings,
        gallery_embeddings=gallery_embeddings,
        query_person_ids=query_person_ids,
        query_camera_ids=query_camera_ids,
        gallery_person_ids=gallery_person_ids,
        gallery_camera_ids=gallery_camera_ids,
        heads=slices,
        camera_filter=camera_filter,
        progress=progress,
    )
    calibration = Calibration(
        fingerprint=fingerprint,
        data=manifest.name,
        camera_filter=camera_filter,
        precision=precision,
        normalize_heads=preset.evaluation.normalize_heads,
        flip=flip,
        whole=meaning,
        heads=meanings,
    )
    return replace(evaluation, calibration=calibration)


def check_scorable(manifest: Manifest, *, camera_filter: bool = True) -> None:
    """Refuse a data set on which nothing can be scored, before anything is embedded or trained.

    Raises:
        DataError: it has no query or no gallery images.
        EvaluationError: no query has a right answer.
    """
    queries, gallery = manifest.split("query"), _without_junk(manifest)
    if not queries or not gallery:
        raise DataError(
            f"data set '{manifest.name}' has {len(queries)} query and {len(gallery)} gallery "
            "images; an evaluation needs both"
        )
    try:
        check_right_answers(
            query_person_ids=_person_ids(queries),
            query_camera_ids=_camera_ids(queries),
            gallery_person_ids=_person_ids(gallery),
            gallery_camera_ids=_camera_ids(gallery),
            camera_filter=camera_filter,
        )
    except EvaluationError as error:
        raise EvaluationError(f"data set '{manifest.name}': {error}") from error


def _without_junk(manifest: Manifest) -> list[ImageRecord]:
    return [record for record in manifest.split("gallery") if record.person_id != JUNK]


def _fingerprint(records: Sequence[ImageRecord]) -> str:
    """The SHA-256 of the list of images: where it is the same, the problem is the same."""
    lines = "".join(
        f"{record.split},{record.person_id},{record.camera_id},{record.path}\n"
        for record in records
    )
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _write_per_query(evaluation: Evaluation, path: Path | None) -> Evaluation:
    if path is None:
        return evaluation
    write_per_query(
        path,
        scores=evaluation.whole,
        query_paths=evaluation.query_paths,
        query_person_ids=evaluation.query_person_ids,
        query_camera_ids=evaluation.query_camera_ids,
    )
    return replace(evaluation, per_query_path=path)


def _protocol(
    metric: str,
    gallery_person_ids: np.ndarray,
    camera_filter: bool,
    reranking: Reranking | None,
    *,
    flip: bool,
) -> dict[str, Any]:
    return {
        "metric": metric,
        "ranked_gallery_images": int((gallery_person_ids != JUNK).sum()),
        "camera_filter": camera_filter,
        "flip": flip,
        "rerank": False if reranking is None else asdict(reranking),
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
        "cmc_curve": [scores.cmc_at(rank) for rank in range(1, CURVE_RANKS + 1)],
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

"""Score a run, a checkpoint, or any tool's features, by the protocol of docs/method.md."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from airnet_cli.config.schema import Preset
from airnet_cli.core.checkpoint import library_versions, model_fingerprint, read_checkpoint
from airnet_cli.core.data.manifest import Manifest, load_prepared
from airnet_cli.core.data.records import DISTRACTOR, JUNK
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
from airnet_cli.core.retrieval.metrics import (
    RetrievalScores,
    evaluate_retrieval,
    write_per_query,
)
from airnet_cli.core.retrieval.product import Metric
from airnet_cli.core.retrieval.protocol import (
    LabelledFeatures,
    Labels,
    check_scorable,
    labels_of,
    without_junk,
)
from airnet_cli.core.retrieval.rerank import Reranking
from airnet_cli.core.runtime import DeviceName, PrecisionName, choose_device
from airnet_cli.errors import CheckpointError, UsageError
from airnet_cli.workflows.build import restore_network
from airnet_cli.workflows.embedder import choose_heads
from airnet_cli.workflows.runs import SCORES, Model, find_model, read_log, read_object

JSON_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to score, how, and what to write."""

    model: Path | None = None
    """A run folder or checkpoint; None: the newest finished run under `runs_root`."""
    runs_root: Path = Path("runs")
    data_name: str | None = None
    """A prepared data set under `data_root`; None: the one that the model was trained on."""
    data_root: Path = Path("data")
    device: DeviceName = "auto"
    precision: PrecisionName = "fp32"
    """In what to embed."""
    batch_size: int | None = None
    """Images to embed at once; None: as the preset says."""
    workers: int = 1
    """Processes that decode images."""
    camera_filter: bool | None = None
    """Whether images by the query's own camera are ignored; None: as the preset says."""
    heads: Sequence[str] | None = None
    """Score these heads' concatenation as the whole; None: all heads."""
    flip: bool = False
    """Embed each image as the mean of image and mirror image."""
    rerank: bool = False
    """Rank by k-reciprocal neighbours, with the published parameters."""
    calibrate: bool = False
    """Measure what the scores of pairs mean, and keep it beside the checkpoint for `match`."""
    output: Path | None = None
    """Write the scores to this file."""
    per_query: Path | None = None
    """Write a table of single queries to this file."""


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
    queries: Labels
    """Of the Q queries."""
    scores_path: Path | None = None
    """Where the scores were written, if they were."""
    calibration: Calibration | None = None
    """What the scores of pairs mean, where that was asked for."""
    calibration_path: Path | None = None
    """Where the calibration was written, if it was."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape (docs/formats.md); fractions, not percent."""
        scores = {
            "version": JSON_VERSION,
            **self.whole.to_dict(),
            "heads": {name: scores.to_dict() for name, scores in self.heads.items()},
            "protocol": self.protocol,
        }
        if self.calibration is not None:
            scores["calibration"] = self.calibration.to_dict()
        return scores


def evaluate(
    options: EvaluateOptions,
    *,
    on_model: Callable[[Model], None] = lambda model: None,
    progress: Progress = silent,
) -> Evaluation:
    """Score a run folder or checkpoint on query and gallery of a prepared data set.

    Scores go to `options.output`. Without it, the scores of a finished run on its own data by its
    own protocol go to its `scores.json`, and all others are written nowhere. `on_model` is called
    with the model before it is read.

    Raises:
        UsageError: the network lacks one of the heads, or they were to be calibrated.
        CheckpointError: no such run or checkpoint.
        DataError: the data set is not prepared, or has no query or gallery images.
        EvaluationError: no query has a right answer.
        OutputError: a file can't be written.
    """
    if options.calibrate and options.heads is not None:
        raise UsageError("a calibration measures the whole and each head; leave --heads out")
    found = find_model(options.model, options.runs_root)
    on_model(found)
    checkpoint = read_checkpoint(found.checkpoint)
    network, preset = restore_network(checkpoint)
    manifest = load_prepared(options.data_root, options.data_name or preset.data.name)
    device = choose_device(options.device)
    evaluation = score_network(
        network.to(device),
        preset,
        manifest,
        options,
        device=device,
        model=found,
        training=checkpoint.training,
        progress=progress,
    )
    output = options.output
    if output is None and found.run is not None and _is_own(evaluation, found.run, preset):
        output = found.run / SCORES
    evaluation = _write(evaluation, output, options.per_query)
    if evaluation.calibration is None:
        return evaluation
    beside = calibration_path(found.checkpoint)
    write_calibration(beside, evaluation.calibration)
    return replace(evaluation, calibration_path=beside)


def _is_own(evaluation: Evaluation, run: Path, preset: Preset) -> bool:
    """Whether these are the scores that belong in `run`: `compare` and `--resume` rely on them."""
    protocol = evaluation.protocol
    own = {
        "heads": protocol["network_heads"],
        "precision": "fp32",
        "flip": False,
        "rerank": False,
        "camera_filter": preset.evaluation.camera_filter,
    }
    data = protocol["data"]
    if data["name"] != preset.data.name or any(protocol[key] != own[key] for key in own):
        return False
    # A run with scores counts as finished, so a stopped run must not get any.
    if len(read_log(run)) < preset.training.epochs:
        return False
    try:
        before = read_object(run / SCORES)
    except CheckpointError:  # missing or broken: written again
        return True
    # A data set of the same name may have been prepared from other images since.
    return bool(before.get("protocol", {}).get("data", {}).get("sha256") == data["sha256"])


def _write(evaluation: Evaluation, output: Path | None, per_query: Path | None) -> Evaluation:
    if output is not None:
        write_json(output, replace(evaluation, calibration=None).to_dict())  # it has its own file
    if per_query is not None:
        write_per_query(per_query, scores=evaluation.whole, queries=evaluation.queries)
    return replace(evaluation, scores_path=output)


def evaluate_features(
    *,
    query: Path,
    gallery: Path,
    metric: Metric,
    camera_filter: bool = True,
    rerank: bool = False,
    output: Path | None = None,
    per_query: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Score features that any tool computed: `Q.npy` with `Q.csv` beside it, the gallery alike.

    Raises:
        UsageError: they are to be re-ranked by another metric than cosine.
        DataError: files are missing, broken, or do not fit together.
        EvaluationError: no query has a right answer, or the widths differ.
    """
    if rerank and metric != "cosine":
        raise UsageError(f"re-ranking compares by cosine, not {metric}; leave one of them out")
    reranking = Reranking() if rerank else None
    queries, images = read_features(query), read_features(gallery)
    scores = evaluate_retrieval(
        queries,
        images,
        metric=metric,
        camera_filter=camera_filter,
        reranking=reranking,
        progress=progress,
    )
    protocol = {
        "features": {"query": str(query), "gallery": str(gallery)},
        "embedding_size": queries.embeddings.shape[1],
        **_ranking_record(metric, images.labels, camera_filter, reranking, flip=False),
    }
    evaluation = Evaluation(scores, {}, protocol, None, queries.labels)
    return _write(evaluation, output, per_query)


def score_network(
    network: AirNet,
    preset: Preset,
    manifest: Manifest,
    options: EvaluateOptions,
    *,
    device: torch.device,
    model: Model | None,
    training: dict[str, Any],
    progress: Progress = silent,
) -> Evaluation:
    """Embed query and gallery of `manifest` with `network`, and score the whole and each head.

    `model` names the file of the network, where there is one (without it there is no calibration),
    and `training` is what that file says. Options that name files and folders are not looked at.

    Raises:
        UsageError: the network lacks one of the heads.
        DataError: there is no query or gallery image, or one can't be read.
        EvaluationError: no query has a right answer.
    """
    slices = choose_heads(network.head_slices, options.heads)
    camera_filter = options.camera_filter
    if camera_filter is None:
        camera_filter = preset.evaluation.camera_filter
    reranking = Reranking() if options.rerank else None
    check_scorable(manifest, camera_filter=camera_filter)
    query, gallery = _embed(network, preset, manifest, options, device=device, progress=progress)

    def measure(part: slice) -> tuple[RetrievalScores, ScoreCalibration | None]:
        parts = query.part(part), gallery.part(part)
        scores = evaluate_retrieval(
            *parts,
            metric="cosine",
            camera_filter=camera_filter,
            reranking=reranking,
            progress=progress,
        )
        if not options.calibrate:
            return scores, None
        return scores, calibrate(*parts, camera_filter=camera_filter, progress=progress)

    whole, meaning = measure(slice(None))
    # A single head is the whole embedding: not measured twice.
    alone = {
        name: (whole, meaning) if len(slices) == 1 else measure(part)
        for name, part in slices.items()
    }
    fingerprint = None if model is None else model_fingerprint(model.checkpoint)
    protocol = {
        "data": _data_record(manifest),
        "fingerprint": fingerprint,
        **_model_record(network, preset, options, device),
        "embedding_size": query.embeddings.shape[1],
        "heads": list(slices),
        "training": training,
        # Which epoch was taken, and by whose scores; the last one unless training says otherwise.
        "selection": training.get("selection", "last"),
        **_ranking_record("cosine", gallery.labels, camera_filter, reranking, flip=options.flip),
    }
    calibration = None
    if meaning is not None and fingerprint is not None:
        calibration = Calibration(
            fingerprint=fingerprint,
            data=manifest.name,
            camera_filter=camera_filter,
            precision=options.precision,
            normalize_heads=preset.evaluation.normalize_heads,
            flip=options.flip,
            whole=meaning,
            heads={name: each for name, (_, each) in alone.items() if each is not None},
        )
    heads = {name: scores for name, (scores, _) in alone.items()}
    return Evaluation(whole, heads, protocol, model, query.labels, calibration=calibration)


def _embed(
    network: AirNet,
    preset: Preset,
    manifest: Manifest,
    options: EvaluateOptions,
    *,
    device: torch.device,
    progress: Progress,
) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Query and gallery of `manifest`, without junk."""
    splits = {"query": manifest.split("query"), "gallery": without_junk(manifest)}
    query, gallery = (
        LabelledFeatures(
            embed_images(
                network,
                [manifest.root / record.path for record in records],
                height_px=preset.data.height_px,
                width_px=preset.data.width_px,
                batch_size=options.batch_size or preset.evaluation.batch_size,
                workers=options.workers,
                device=device,
                precision=options.precision,
                normalize_heads=preset.evaluation.normalize_heads,
                heads=options.heads,
                flip=options.flip,
                stage=stage,
                progress=progress,
            ).numpy(),
            labels_of(records),
        )
        for stage, records in splits.items()
    )
    return query, gallery


def _data_record(manifest: Manifest) -> dict[str, Any]:
    """What the record says about the data set."""
    queries, gallery = manifest.split("query"), without_junk(manifest)
    lines = "".join(
        f"{record.split},{record.person_id},{record.camera_id},{record.path}\n"
        for record in (*queries, *gallery)
    )
    return {
        "name": manifest.name,
        "split_rule": manifest.split_rule,
        "query_images": len(queries),
        "gallery_images": len(gallery),
        "distractor_images": sum(record.person_id == DISTRACTOR for record in gallery),
        "junk_images": len(manifest.split("gallery")) - len(gallery),
        # Of the list of images: where it is the same, the problem is the same.
        "sha256": hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest(),
    }


def _model_record(
    network: AirNet, preset: Preset, options: EvaluateOptions, device: torch.device
) -> dict[str, Any]:
    """What the record says about the network and how it embedded."""
    return {
        "variant": preset.model.variant,
        "backbone": preset.model.backbone,
        "height_px": preset.data.height_px,
        "width_px": preset.data.width_px,
        "network_heads": list(network.head_slices),
        "normalize_heads": preset.evaluation.normalize_heads,
        "precision": options.precision,
        "batch_size": options.batch_size or preset.evaluation.batch_size,
        "device": device.type,
    }


def _ranking_record(
    metric: Metric, gallery: Labels, camera_filter: bool, reranking: Reranking | None, *, flip: bool
) -> dict[str, Any]:
    """What the record says about how the gallery was ranked."""
    return {
        "metric": metric,
        "ranked_gallery_images": int((gallery.person_ids != JUNK).sum()),
        "camera_filter": camera_filter,
        "flip": flip,
        "rerank": False if reranking is None else asdict(reranking),
        "mAP": "mean of the precisions at the right answers",
        "mAP_trapezoid": "mean of the precisions before and at the right answers (official code)",
        "ties": "the lower gallery row first",
        "versions": library_versions(),
    }

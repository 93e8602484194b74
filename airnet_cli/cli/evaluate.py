"""`airnet evaluate`: scores of a run, or of features that any tool computed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from airnet_cli.cli.options import (
    DEFAULT_DATA_ROOT,
    DEFAULT_RUNS_ROOT,
    DataRootOption,
    DeviceOption,
    JsonOption,
    PrecisionName,
    RunsRootOption,
)
from airnet_cli.cli.output import note, percent, print_json, print_table, progress_bars
from airnet_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airnet_cli.core.retrieval.calibration import Calibration
    from airnet_cli.core.retrieval.metrics import RetrievalScores
    from airnet_cli.workflows.evaluate import Evaluation
    from airnet_cli.workflows.runs import Model


def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|CHECKPOINT]",
            help="A run folder or a .safetensors checkpoint; the newest finished run if not given.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="NAME", help="Score on this prepared data set, not the run's own."
        ),
    ] = None,
    query: Annotated[
        Path | None,
        typer.Option(
            "--query",
            metavar="Q.npy",
            help="Score these query features; Q.csv beside them has person_id and camera_id.",
        ),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option("--gallery", metavar="G.npy", help="The gallery's features, with G.csv."),
    ] = None,
    metric: Annotated[
        Literal["cosine", "euclidean"],
        typer.Option("--metric", help="Compare --query and --gallery features by this distance."),
    ] = "cosine",
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    runs_root: RunsRootOption = DEFAULT_RUNS_ROOT,
    device: DeviceOption = "auto",
    precision: Annotated[
        PrecisionName, typer.Option("--precision", help="Embed in this precision.")
    ] = "fp32",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Embed so many images at once.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Decode images in so many processes.")
    ] = 1,
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads", metavar="A1,A2,I", help="Score these heads together, instead of all."
        ),
    ] = None,
    flip: Annotated[
        bool,
        typer.Option("--flip", help="Embed each image as the mean of image and mirror image."),
    ] = False,
    rerank: Annotated[
        bool,
        typer.Option("--rerank", help="Rank by k-reciprocal neighbours (k1 20, k2 6, lambda 0.3)."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.json", dir_okay=False, help="Write the scores here."
        ),
    ] = None,
    per_query: Annotated[
        Path | None,
        typer.Option(
            "--per-query",
            metavar="FILE.csv",
            dir_okay=False,
            help="Write what each query found: APs and the ranks of its right answers.",
        ),
    ] = None,
    camera_filter: Annotated[
        bool | None,
        typer.Option(
            "--camera-filter/--no-camera-filter",
            help="Ignore images of the query's own camera, or count them; the run's own setting if "
            "not given.",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure which scores mean the same person; kept beside the checkpoint for match.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Score a run on its data set: mAP, mINP and CMC, exactly.

    Example: airnet evaluate runs/market1501-20261123-194500 --json
    """
    if (query is None) != (gallery is None):
        raise UsageError("--query and --gallery go together: give both, or neither")
    if query is not None and (model is not None or data is not None):
        raise UsageError("--query and --gallery are scored without a run: leave RUN and --data out")
    if query is None and metric != "cosine":
        raise UsageError("--metric is for --query and --gallery; runs are compared by cosine")
    if query is not None and calibrate:
        raise UsageError("--calibrate is for a run or checkpoint, beside which the result is kept")
    if query is not None and (flip or heads is not None):
        raise UsageError("--flip and --heads are for a run: features are scored as they are")
    from airnet_cli.workflows import evaluate as workflow

    with progress_bars() as progress:
        if query is not None and gallery is not None:
            evaluation = workflow.evaluate_features(
                query=query,
                gallery=gallery,
                metric=metric,
                camera_filter=camera_filter is not False,
                rerank=rerank,
                output=output,
                per_query=per_query,
                progress=progress,
            )
        else:
            options = workflow.EvaluateOptions(
                model=model,
                runs_root=runs_root,
                data_name=data,
                data_root=data_root,
                device=device,
                precision=precision,
                batch_size=batch_size,
                workers=workers,
                camera_filter=camera_filter,
                heads=None if heads is None else [name.strip() for name in heads.split(",")],
                flip=flip,
                rerank=rerank,
                calibrate=calibrate,
                output=output,
                per_query=per_query,
            )
            evaluation = workflow.evaluate(options, on_model=_say_which, progress=progress)
    if json:
        print_json(evaluation.to_dict())
        return
    _show(evaluation)
    if per_query is not None:
        note(f"single queries written to {per_query}")


def _say_which(model: "Model") -> None:
    if model.was_chosen:
        note(f"evaluating the newest finished run: {model.run}")


def _show(evaluation: "Evaluation") -> None:
    heads = evaluation.heads if len(evaluation.heads) > 1 else {}
    protocol = evaluation.protocol
    is_whole = protocol.get("heads") == protocol.get("network_heads")
    rows = [_row("whole embedding" if is_whole else _name(protocol["heads"]), evaluation.whole)]
    rows += [_row(f"head {name} alone", scores) for name, scores in heads.items()]
    columns = ["", "mAP", "mAP_trapezoid", "mINP", "rank-1", "rank-5", "rank-10", "rank-20"]
    print_table(columns, rows)
    whole = evaluation.whole
    if protocol["rerank"]:
        parameters = "k1 {k1}, k2 {k2}, lambda {original_weight:g}".format(**protocol["rerank"])
        note(f"re-ranked by k-reciprocal neighbours ({parameters})")
    if protocol["flip"]:
        note("each image embedded as the mean of image and mirror image")
    trained_on = protocol.get("training", {}).get("data")
    if trained_on is not None and trained_on != protocol["data"]["name"]:
        note(f"across data sets: trained on {trained_on}, scored on {protocol['data']['name']}")
    training = protocol.get("training", {})
    match protocol.get("selection"):
        case "val":
            note(f"weights of epoch {training['finished_epochs']}, the best on held-out people")
        case "test":
            note(
                f"weights of epoch {training['finished_epochs']}, the best on the test split of "
                f"{trained_on}: optimistic there"
            )
    if not protocol["camera_filter"]:
        note("images of the query's own camera counted too: not the data sets' protocol")
    note(f"{whole.queries_counted:,} of {whole.queries_total:,} queries counted{_why_not(whole)}")
    if evaluation.scores_path is not None:
        note(f"scores written to {evaluation.scores_path}")
    elif evaluation.model is not None and evaluation.model.run is not None:
        note(
            "scores not written: a run keeps those on its own data by its own protocol, once it "
            "is finished; -o FILE.json writes these"
        )
    if evaluation.calibration is not None:
        _show_calibration(evaluation.calibration)
        note(f"calibration written to {evaluation.calibration_path}")


def _show_calibration(calibration: "Calibration") -> None:
    """Thresholds at the rates that people know, for the whole embedding and each head."""
    heads = calibration.heads if len(calibration.heads) > 1 else {}
    meanings = {"whole embedding": calibration.whole}
    meanings |= {f"head {name} alone": meaning for name, meaning in heads.items()}
    rows = [
        (label, f"{point.far:g}", f"{point.threshold:.4f}", percent(point.true_accept_rate))
        for label, meaning in meanings.items()
        for point in meaning.named_points()
    ]
    print_table(["", "false-accept rate", "threshold", "true-accept rate"], rows)
    for label, meaning in meanings.items():
        note(
            f"{label}: equal-error rate {percent(meaning.equal_error_rate)}% at "
            f"{meaning.equal_error_threshold:.4f}; {meaning.same_person_pairs:,} pairs of one "
            f"person, {meaning.different_person_pairs:,} of two"
        )


def _name(heads: "Sequence[str]") -> str:
    return f"head{'s' if len(heads) > 1 else ''} {' + '.join(heads)}"


def _row(label: str, scores: "RetrievalScores") -> tuple[str, ...]:
    values = [scores.mAP, scores.mAP_trapezoid, scores.mINP]
    values += [scores.cmc_at(rank) for rank in (1, 5, 10, 20)]
    return (label, *(percent(value) for value in values))


def _why_not(scores: "RetrievalScores") -> str:
    missing = scores.queries_not_counted
    reasons = [
        f"{count:,} {why}"
        for count, why in (
            (missing.no_gallery_image, "have no gallery image of their identity"),
            (missing.same_camera_only, "have one only by their own camera"),
        )
        if count
    ]
    return f"; {', '.join(reasons)}" if reasons else ""

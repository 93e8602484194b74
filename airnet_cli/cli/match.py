"""`airnet match`: the best matches of pictures in a gallery."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airnet_cli.cli.options import (
    DEFAULT_RUNS_ROOT,
    AllowPartialOption,
    DeviceOption,
    JsonOption,
    RunsRootOption,
)
from airnet_cli.cli.output import note, print_json, print_lines, print_table, progress_bars

if TYPE_CHECKING:
    from airnet_cli.core.ranked import RankedList
    from airnet_cli.workflows.match import Matching


def match(
    queries: Annotated[
        list[Path],
        typer.Argument(
            metavar="QUERY...",
            help="Images, folders, .txt or .csv lists, or .npy features.",
            show_default=False,
        ),
    ],
    gallery: Annotated[
        str,
        typer.Option(
            "--gallery",
            "-g",
            metavar="GALLERY.npy",
            help="Search this gallery (airnet embed): a file, a folder, or "
            "milvus://HOST:PORT/COLLECTION.",
        ),
    ],
    top: Annotated[int, typer.Option("-k", "--top", min=1, help="Show so many matches.")] = 10,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="SCORE",
            help="Call it the same person from this score on, instead of the calibration's.",
        ),
    ] = None,
    far: Annotated[
        float | None,
        typer.Option(
            "--far",
            metavar="RATE",
            help="Use the calibration's threshold for this false-accept rate; 0.001 if not given.",
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option("--heads", metavar="A1,A2,I", help="Compare these heads alone."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Search only rows like this: a column of the gallery's table, one of "
            "= != < <= > >=, a value, as in camera_id!=3; may be repeated.",
        ),
    ] = None,
    rerank: Annotated[
        bool,
        typer.Option(
            "--rerank", help="Order the nearest 300 by the neighbours that they have in common."
        ),
    ] = False,
    allow_partial: AllowPartialOption = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="RUN|FILE",
            help="The model of the gallery, where it is not found by the gallery's record.",
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the matches as a table.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Draw the ranked lists: out.png."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write one page with the ranked lists."),
    ] = None,
    runs_root: RunsRootOption = DEFAULT_RUNS_ROOT,
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Embed so many images at once.")
    ] = 64,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Read images in so many processes.")
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Find who is on a picture: its best matches in a gallery.

    Example: airnet match query.jpg --gallery gallery.npy
    """
    from airnet_cli.workflows import match as workflow

    with progress_bars() as progress:
        matching = workflow.match(
            workflow.MatchOptions(
                queries=queries,
                gallery=gallery,
                k=top,
                threshold=threshold,
                far=far,
                heads=None if heads is None else [name.strip() for name in heads.split(",")],
                where=where or (),
                rerank=rerank,
                allow_partial=allow_partial,
                checkpoint=checkpoint,
                runs_root=runs_root,
                table=csv,
                picture=picture,
                page=html,
                device=device,
                batch_size=batch_size,
                workers=workers,
            ),
            progress=progress,
        )
    print_json(matching.to_dict()) if json else _show(matching)
    for text in matching.notes:
        note(f"note: {text}")
    for path in (csv, picture, html):
        if path is not None:
            note(f"written to {path}")


def _show(matching: "Matching") -> None:
    for index, query in enumerate(matching.queries):
        print_lines(["", query.query] if index else [query.query])
        _show_query(query)
    decision = matching.decision
    if decision is not None and decision.data is not None:
        note(
            f"same person: from {decision.threshold:.4f} on, which {decision.far:g} of the pairs "
            f"of two people reach on {decision.data}"
        )


def _show_query(query: "RankedList") -> None:
    first = query.matches[0]
    columns = ["rank", "score"]
    columns += ["distance"] if first.distance is not None else []
    columns += ["verdict"] if first.verdict is not None else []
    columns += [*(["row"] if first.row is not None else []), *first.columns, "path"]
    rows: list[list[str]] = []
    for found in query.matches:
        row = [found.rank_text, f"{found.score:.4f}"]
        row += [f"{found.distance:.4f}"] if found.distance is not None else []
        row += [found.verdict] if found.verdict is not None else []
        row += [str(found.row)] if found.row is not None else []
        rows.append([*row, *found.columns.values(), found.name])
    print_table(columns, rows)

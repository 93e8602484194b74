"""`airnet index`: what makes searching a large gallery quicker."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from airnet_cli.cli.options import JsonOption
from airnet_cli.cli.output import percent, print_json, print_table, progress_bars

if TYPE_CHECKING:
    from airnet_cli.workflows.index import MadeIndex


def index(
    gallery: Annotated[
        str,
        typer.Argument(
            metavar="GALLERY.npy", help="The gallery (airnet embed).", show_default=False
        ),
    ],
    kind: Annotated[
        Literal["int8", "hnsw"],
        typer.Option(
            "--kind",
            help="int8: the same answers, quicker. hnsw: approximate; tells what it misses "
            "(airnet[ann]).",
        ),
    ] = "int8",
    json: JsonOption = False,
) -> None:
    """Make an index of a gallery, for quicker matches.

    Example: airnet index gallery.npy
    """
    from airnet_cli.workflows import index as workflow

    with progress_bars() as progress:
        made = workflow.make_index(gallery, kind=kind, progress=progress)
    print_json(made.to_dict()) if json else _show(made)


def _show(made: "MadeIndex") -> None:
    columns = ["gallery", "index", "rows"]
    row = [str(made.gallery), made.kind, f"{made.record['rows']:,}"]
    if made.measured is not None:
        figures = made.measured
        columns += [f"recall@{figures['k']}", "rank-1", "rank-1, exact", "queries"]
        row += [_share(figures[name]) for name in ("recall", "rank1", "exact_rank1")]
        row.append(str(figures["queries"]))
    print_table([*columns, "time"], [[*row, f"{made.seconds:.1f} s"]])


def _share(fraction: float | None) -> str:
    return "–" if fraction is None else percent(fraction)

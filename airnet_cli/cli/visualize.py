"""`airnet visualize`: what a network looked at, and what it found, as pictures and as a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airnet_cli.cli.options import (
    DEFAULT_DATA_ROOT,
    DEFAULT_RUNS_ROOT,
    AllowPartialOption,
    CheckpointOption,
    DataRootOption,
    DeviceOption,
    RunsRootOption,
)
from airnet_cli.cli.output import note, print_lines, progress_bars

if TYPE_CHECKING:
    from airnet_cli.workflows.runs import Model
    from airnet_cli.workflows.visualize import SheetName


def visualize(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE",
            help="The pictures to explain; queries of the run's data set if none is given."
            " With --curves: run folders.",
            show_default=False,
        ),
    ] = None,
    gradcam: Annotated[
        bool,
        typer.Option("--gradcam", help="Show where each head sees the identity that it predicts."),
    ] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Show where the interaction head's attention is.")
    ] = False,
    ranking: Annotated[
        bool,
        typer.Option("--ranking", help="Show what is found, by the whole and by each head alone."),
    ] = False,
    curves: Annotated[
        bool,
        typer.Option(
            "--curves",
            help="Draw losses, scores, CMC and ROC of the runs given as IMAGE, in one figure.",
        ),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="IMAGE",
            help="With --gradcam: show what makes each head think this picture alike.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="RUN|FILE",
            help="With --gradcam: add the columns of this run or checkpoint.",
        ),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(
            "--gallery",
            metavar="GALLERY.npy",
            help="With --ranking: rank this gallery (airnet embed), not the data set's.",
        ),
    ] = None,
    allow_partial: AllowPartialOption = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PICTURE|FOLDER",
            help="Write the picture here, or several into this folder; default: gradcam.png, ...",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write one page with everything; pictures too only where -o is given.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, help="Without IMAGE: take so many queries (4 if not said)."),
    ] = None,
    top: Annotated[
        int, typer.Option("-k", "--top", min=1, max=50, help="Show so many pictures in each list.")
    ] = 10,
    checkpoint: CheckpointOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="NAME", help="Take queries and gallery of this prepared data set."
        ),
    ] = None,
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    runs_root: RunsRootOption = DEFAULT_RUNS_ROOT,
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Embed so many images at once.")
    ] = 64,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Decode images in so many processes.")
    ] = 1,
) -> None:
    """Draw what the network looked at and what it found.

    Example: airnet visualize --gradcam --ranking --html report.html
    """
    from airnet_cli.workflows import visualize as workflow

    if curves:
        _draw_curves(images or [], output, alone=not (gradcam or attention or ranking or html))
        return
    wanted: list[SheetName] = []
    if gradcam:
        wanted.append("gradcam")
    if attention:
        wanted.append("attention")
    if ranking:
        wanted.append("ranking")
    with progress_bars() as progress:
        written = workflow.visualize(
            sheets=wanted,
            images=images or [],
            against=against,
            compare=compare,
            gallery=gallery,
            allow_partial=allow_partial,
            checkpoint=checkpoint,
            runs_root=runs_root,
            data_name=data,
            data_root=data_root,
            count=count,
            top=top,
            output=output,
            html=html,
            device=device,
            batch_size=batch_size,
            workers=workers,
            on_model=_say_which,
            progress=progress,
        )
    paths = [*written.pictures, written.rankings, written.report]
    print_lines(str(path) for path in paths if path is not None)


def _draw_curves(runs: list[Path], output: Path | None, *, alone: bool) -> None:
    from airnet_cli.errors import UsageError
    from airnet_cli.workflows.curves import draw_curves

    if not alone:
        raise UsageError("--curves is of runs, the others are of images; ask for one of them")
    drawn = draw_curves(runs, output=output or Path("curves.png"))
    for each in drawn.notes:
        note(f"note: {each}")
    print_lines([str(drawn.picture)])


def _say_which(model: "Model") -> None:
    if model.was_chosen:
        note(f"looking into the newest finished run: {model.run}")

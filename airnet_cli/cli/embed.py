"""`airnet embed`: images become a gallery on disk."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from airnet_cli.cli.options import (
    DEFAULT_DATA_ROOT,
    DEFAULT_RUNS_ROOT,
    CheckpointOption,
    DataRootOption,
    DeviceOption,
    ExportedOption,
    JsonOption,
    PrecisionName,
    RunsRootOption,
    RuntimeOption,
    place,
)
from airnet_cli.cli.output import note, print_json, print_table, progress_bars
from airnet_cli.cli.stopping import stop_if_told
from airnet_cli.errors import UsageError

if TYPE_CHECKING:
    from airnet_cli.workflows.embedded import EmbeddedGallery
    from airnet_cli.workflows.runs import Model

LISTED = 20
"""Skipped images that are named on stderr; all of them are in the .json file."""


def embed(
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="GALLERY.npy",
            help="Write the embeddings here; a .csv (paths) and a .json (model) go beside it. Or a "
            "folder (--append, --shard-size), or milvus://HOST:PORT/COLLECTION, or, with "
            "--shard-size, s3://BUCKET/PREFIX.",
        ),
    ],
    inputs: Annotated[
        list[Any] | None,
        typer.Argument(
            parser=place,
            metavar="IMAGES",
            help="Folders (with all below), images, .txt lists, or .csv tables with a column path; "
            "with --shard-size also s3://BUCKET/PREFIX.",
            show_default=False,
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="NAME", help="Embed a split of this prepared data set."),
    ] = None,
    split: Annotated[
        Literal["train", "query", "gallery"] | None,
        typer.Option("--split", help="Which split of --data."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option("--dtype", help="Store this type; float16 takes half the disk space."),
    ] = "float32",
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads", metavar="A1,A2,I", help="Keep these heads alone; all if not given."
        ),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average image and mirror image: twice the work.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Embed this many images at once.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Read images in this many processes.")
    ] = 1,
    device: DeviceOption = "auto",
    precision: Annotated[
        PrecisionName, typer.Option("--precision", help="Compute in this precision.")
    ] = "fp32",
    runtime: RuntimeOption = "torch",
    exported: ExportedOption = None,
    on_bad_image: Annotated[
        Literal["error", "skip"],
        typer.Option(
            "--on-bad-image", help="Stop at an image that can't be read, or leave it out."
        ),
    ] = "error",
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what a stopped job for this output has computed.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add to the gallery in the folder -o, or create one; images that have a row get a "
            "new one.",
        ),
    ] = False,
    shard_size: Annotated[
        int | None,
        typer.Option(
            "--shard-size",
            min=1,
            metavar="IMAGES",
            help="Write a folder of parts of this many images, by one process or many.",
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            "--engine", help="With --shard-size: compute here (or under torchrun), or on Ray."
        ),
    ] = "local",
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    runs_root: RunsRootOption = DEFAULT_RUNS_ROOT,
    json: JsonOption = False,
) -> None:
    """Embed images into a gallery: a vector for each, on disk.

    Example: airnet embed ./gallery -o gallery.npy
    """
    if bool(inputs) == (data is not None):
        raise UsageError("nothing to embed; give folders or images, or --data and --split")
    if (data is None) != (split is None):
        raise UsageError("--data and --split go together, as in --data market1501 --split query")
    from airnet_cli.workflows import embed as workflow
    from airnet_cli.workflows.embed_parts import EmbedOptions

    options = EmbedOptions(
        inputs=tuple(inputs or ()),
        data_name=data,
        split=split,
        data_root=data_root,
        output=output,
        model=checkpoint,
        runs_root=runs_root,
        dtype=dtype,
        heads=None if heads is None else tuple(name.strip() for name in heads.split(",")),
        flip=flip,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        runtime=runtime,
        exported=exported,
        on_bad_image=on_bad_image,
        resume=resume,
        append=append,
        shard_size=shard_size,
        engine=engine,
    )
    # Of the processes of torchrun only the first one reports; errors of all are shown.
    is_first = workflow.is_first_process()
    with progress_bars() if is_first else nullcontext() as bars:
        embedded = workflow.embed(
            options,
            on_model=_say_which if is_first else _say_nothing,
            noted=lambda text: note(f"note: {text}"),
            progress=bars or _silent,
        )
    _name_skipped(embedded)
    if embedded.shards and embedded.record["rows"] is not None:
        total, rows = embedded.shards["total"], embedded.record["rows"]
        note(f"{embedded.path} is complete: {total:,} parts, {rows:,} rows")
    if is_first:
        print_json(embedded.to_dict()) if json else _show(embedded)


def _say_which(model: "Model") -> None:
    if model.was_chosen:
        note(f"embedding with the newest finished run: {model.run}")


def _say_nothing(*_: object) -> None: ...


def _silent(stage: str, done: int, total: int | None, unit: str) -> None:
    """What hears of progress in a process that is not heard itself."""
    stop_if_told()


def _name_skipped(embedded: "EmbeddedGallery") -> None:
    skipped = embedded.skipped
    for image in skipped[:LISTED]:
        note(f"skipped {image['path']}: {image['reason']}")
    if len(skipped) > LISTED:
        note(f"… all {len(skipped):,} skipped images are listed by --json and in the .json files")


def _show(embedded: "EmbeddedGallery") -> None:
    record, seconds, details = embedded.record, embedded.seconds, embedded.details
    row: dict[str, object] = {"gallery": str(embedded.path)}
    if embedded.shards:
        row |= {"parts": embedded.shards["total"], "done here": embedded.shards["done"]}
        row |= {"missing": embedded.shards["missing"], "images": embedded.images}
    else:
        row |= {"images": record["rows"]}
    row |= {"replaced": details["replaced"]} if "replaced" in details else {}
    row |= {"skipped": len(embedded.skipped), "dimensions": record["dimensions"]}
    row |= {"type": record["dtype"], "heads": ", ".join(record["heads"])}
    row |= {"images/s": f"{embedded.images_per_second:,.1f}"}
    row |= {key: f"{seconds[key]:.1f} s" for key in ("reading", "network", "writing")}
    print_table(list(row), [list(row.values())])

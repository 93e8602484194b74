"""`airnet embed`: images become a gallery on disk."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
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
    from airnet_cli.workflows.embed import EmbeddedGallery
    from airnet_cli.workflows.embed_shards import EngineName, ShardedGallery
    from airnet_cli.workflows.runs import Model

LISTED = 20
"""How many skipped images are named on stderr; all of them are in the .json file."""


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
        typer.Option("--dtype", help="Store numbers so; float16 takes half of the room."),
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
        int | None, typer.Option("--batch-size", min=1, help="Embed so many images at once.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Read images in so many processes.")
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
        bool, typer.Option("--resume", help="Go on with the job for this output that was stopped.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add to the gallery in the folder -o, or begin one; images that have a row get a "
            "new one.",
        ),
    ] = False,
    shard_size: Annotated[
        int | None,
        typer.Option(
            "--shard-size",
            min=1,
            metavar="IMAGES",
            help="Write a folder of galleries of so many images each, by one process or many.",
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
        raise UsageError("what is to be embedded? give folders or images, or --data and --split")
    if (data is None) != (split is None):
        raise UsageError("--data and --split go together, as in --data market1501 --split query")
    chosen_heads = None if heads is None else [name.strip() for name in heads.split(",")]
    if shard_size is not None:
        if append:
            raise UsageError("--shard-size makes a whole gallery of shards; leave --append out")
        _embed_shards(
            engine,
            json,
            inputs=tuple(map(str, inputs or ())),
            data_name=data,
            split=split,
            data_root=data_root,
            output=output,
            model=checkpoint,
            runs_root=runs_root,
            shard_size=shard_size,
            dtype=dtype,
            heads=None if chosen_heads is None else tuple(chosen_heads),
            flip=flip,
            batch_size=batch_size,
            workers=workers,
            device=device,
            precision=precision,
            runtime=runtime,
            exported=exported,
            on_bad_image=on_bad_image,
        )
        return
    if engine != "local":
        raise UsageError(f"--engine {engine} computes shards; add --shard-size, as in 10000")
    from airnet_cli.workflows import embed as workflow

    for given in (*(inputs or ()), place(output)):
        if isinstance(given, str) and not given.startswith("milvus:"):
            raise UsageError(
                f"'{given}' is in object storage, for shards alone; add --shard-size 10000"
            )
    with progress_bars() as progress:
        embedded = workflow.embed(
            inputs=inputs or (),
            data_name=data,
            split=split,
            data_root=data_root,
            output=output,
            model=checkpoint,
            runs_root=runs_root,
            dtype=dtype,
            heads=chosen_heads,
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
            on_model=_say_which,
            noted=lambda text: note(f"note: {text}"),
            progress=progress,
        )
    _list_skipped(embedded)
    print_json(embedded.to_dict()) if json else _show(embedded)


def _say_which(model: "Model") -> None:
    if model.was_chosen:
        note(f"embedding with the newest finished run: {model.run}")


def _embed_shards(engine: "EngineName", json: bool, **job: Any) -> None:
    """Embed in shards; of the processes of torchrun, the first is heard, and all errors."""
    from airnet_cli.workflows import embed_shards as workflow
    from airnet_cli.workflows.shard_worker import ShardJob

    is_heard = workflow.speaks()
    with progress_bars() if is_heard else nullcontext() as bars:
        embedded = workflow.embed_shards(
            ShardJob(**job),
            engine=engine,
            on_model=_say_which if is_heard else _say_nothing,
            noted=lambda text: note(f"note: {text}"),
            progress=bars or _silent,
        )
    _name_skipped(embedded.skipped, "in the .json files of the shards")
    if embedded.rows is not None:
        note(
            f"{embedded.path} is whole: {embedded.plan.shards:,} shards, {embedded.rows:,} rows, "
            f"{embedded.images_skipped:,} images skipped"
        )
    if is_heard:
        print_json(embedded.to_dict()) if json else _show_shards(embedded)


def _say_nothing(*_: object) -> None: ...


def _silent(stage: str, done: int, total: int | None, unit: str) -> None:
    """What hears of progress in a process that is not heard itself."""
    stop_if_told()


def _show_shards(embedded: "ShardedGallery") -> None:
    plan = embedded.plan
    columns = ["gallery", "shards", "done here", "missing", "images", "skipped", "dimensions"]
    columns += ["type", "heads", "images/s"]
    row = [
        embedded.path,
        plan.shards,
        embedded.done,
        embedded.missing,
        embedded.images,
        len(embedded.skipped),
        plan.settings["dimensions"],
        plan.settings["dtype"],
        ", ".join(plan.record["heads"]),
        f"{embedded.images_per_second:,.1f}",
    ]
    print_table(columns, [row])


def _list_skipped(embedded: "EmbeddedGallery") -> None:
    where = "by --json"
    if isinstance(embedded.path, Path):
        segment = embedded.record.get("segment")
        record = embedded.path / f"{segment}.npy" if segment else embedded.path
        where = f"in {record.with_suffix('.json')}"
    _name_skipped(embedded.record["skipped"], where)


def _name_skipped(skipped: Sequence[Mapping[str, str]], where: str) -> None:
    for image in skipped[:LISTED]:
        note(f"skipped {image['path']}: {image['reason']}")
    if len(skipped) > LISTED:
        note(f"… all {len(skipped):,} that were skipped are listed {where}")


def _show(embedded: "EmbeddedGallery") -> None:
    record, seconds = embedded.record, embedded.seconds
    is_segment = "segment" in record
    columns = ["gallery", "images", *(["replaced"] if is_segment else []), "skipped"]
    columns += ["dimensions", "type", "heads", "images/s", "reading", "network", "writing"]
    row = [
        str(embedded.path),
        record["rows"],
        *([record["replaced"]] if is_segment else []),
        len(record["skipped"]),
        record["dimensions"],
        record["dtype"],
        ", ".join(record["heads"]),
        f"{embedded.images_per_second:,.1f}",
    ]
    row += [f"{part:.1f} s" for part in (seconds.reading, seconds.network, seconds.writing)]
    print_table(columns, [row])

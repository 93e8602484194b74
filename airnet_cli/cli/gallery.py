"""`airnet gallery`: count the rows of a gallery, delete some, join the parts of a folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from airnet_cli.cli.options import JsonOption
from airnet_cli.cli.output import print_json, print_table

NAME = "gallery"
HELP = "Count the rows of a gallery, delete some, or compact it."

GalleryArgument = Annotated[
    str,
    typer.Argument(
        metavar="GALLERY",
        help="A file (gallery.npy), a folder (people/), or milvus://HOST:PORT/COLLECTION.",
        show_default=False,
    ),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="Only rows like this, as in camera_id!=3 (airnet match); may be repeated.",
    ),
]


def count(
    gallery: GalleryArgument,
    where: WhereOption = None,
    json: JsonOption = False,
) -> None:
    """Count the rows of a gallery.

    Example: airnet gallery count people/ --where camera_id=3
    """
    from airnet_cli.workflows import collection as workflow

    counted = workflow.count_rows(gallery, where=where or ())
    if json:
        print_json(counted.to_dict("chosen"))
    else:
        columns = ["gallery", "rows", *([" and ".join(counted.where)] if counted.where else [])]
        row = [str(counted.gallery), f"{counted.rows:,}"]
        print_table(columns, [row + ([f"{counted.chosen:,}"] if counted.where else [])])


def delete(
    gallery: GalleryArgument,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE]...", help="Delete their rows.", show_default=False),
    ] = None,
    where: WhereOption = None,
    json: JsonOption = False,
) -> None:
    """Delete rows from a folder, or from a collection in Milvus.

    Example: airnet gallery delete people/ crops/0001.jpg
    """
    from airnet_cli.workflows import collection as workflow

    left = workflow.delete_rows(gallery, images=images or (), where=where or ())
    if json:
        print_json(left.to_dict("deleted"))
    else:
        row = [str(left.gallery), f"{left.chosen:,}", f"{left.rows:,}"]
        print_table(["gallery", "deleted", "left"], [row])


def compact(
    gallery: Annotated[
        str,
        typer.Argument(metavar="GALLERY", help="A folder (people/).", show_default=False),
    ],
    json: JsonOption = False,
) -> None:
    """Join the parts of a folder into one, and free the disk space of deleted rows.

    Example: airnet gallery compact people/
    """
    from airnet_cli.workflows import collection as workflow

    compacted = workflow.compact_gallery(gallery)
    if json:
        print_json(compacted.to_dict())
    else:
        row = [str(compacted.gallery), f"{compacted.rows:,}"]
        row += [f"{compacted.parts:,}", f"{compacted.deleted:,}"]
        print_table(["gallery", "rows", "parts before", "deleted rows removed"], [row])


COMMANDS: Mapping[str, Callable[..., None]] = {
    "count": count,
    "delete": delete,
    "compact": compact,
}
"""For `app.py` to register under `gallery`."""

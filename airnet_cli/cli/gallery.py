"""`airnet gallery`: count the rows of a gallery, and delete some from a collection in Milvus."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from airnet_cli.cli.options import JsonOption
from airnet_cli.cli.output import print_json, print_table

NAME = "gallery"
HELP = "Count the rows of a gallery, or delete some."

GalleryArgument = Annotated[
    str,
    typer.Argument(
        metavar="GALLERY",
        help="A file (gallery.npy), or milvus://HOST:PORT/COLLECTION.",
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

    Example: airnet gallery count milvus://localhost:19530/people --where camera_id=3
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
        typer.Argument(metavar="[IMAGE]...", help="The images whose rows go.", show_default=False),
    ] = None,
    where: WhereOption = None,
    json: JsonOption = False,
) -> None:
    """Delete rows from a collection in Milvus.

    Example: airnet gallery delete milvus://localhost:19530/people crops/0001.jpg
    """
    from airnet_cli.workflows import collection as workflow

    left = workflow.delete_rows(gallery, images=images or (), where=where or ())
    if json:
        print_json(left.to_dict("deleted"))
    else:
        row = [str(left.gallery), f"{left.chosen:,}", f"{left.rows:,}"]
        print_table(["gallery", "deleted", "left"], [row])


COMMANDS: Mapping[str, Callable[..., None]] = {"count": count, "delete": delete}
"""For `app.py` to register under `gallery`."""

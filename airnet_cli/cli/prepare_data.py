"""`airnet prepare-data market1501|...|folder|csv|demo`: images become a prepared data set.

One function per kind of source, all with the same result. `--json` prints one object, version 1:

    version          1
    name             of the data set, for `data.name` in presets
    manifest, root   paths: the file written, the folder of the images
    counts           per split (train, query, gallery): images, ids, cameras, distractors, junk
    published        the same for the full set, of splits for which it is published, or null
    notes            what is missing, extra or unusual: one line each
    images_verified  images that were opened and decoded
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from airnet_cli.cli.options import DEFAULT_DATA_ROOT, DataRootOption, JsonOption
from airnet_cli.cli.output import note, print_json, print_table, progress_bars

if TYPE_CHECKING:
    from airnet_cli.workflows.preparing import PreparedDataset, PrepareOptions

JSON_VERSION = 1

AllowPartialOption = Annotated[
    bool,
    typer.Option("--allow-partial", help="Take what is there, and note what is missing or extra."),
]
NoVerifyOption = Annotated[
    bool, typer.Option("--no-verify", help="Do not open every image to see whether it is whole.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Open images in so many processes; 0: in this one.",
        show_default="one for each processor",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", help="Call the data set so.", show_default="the name of what is given"),
]


def market1501(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="The Market-1501-v15.09.15 folder, or its zip.",
            show_default=False,
        ),
    ],
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    allow_partial: AllowPartialOption = False,
    no_verify: NoVerifyOption = False,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Prepare Market-1501 by its published counts.

    A folder stays where it is; a zip is unpacked under the data root.

    Example: airnet prepare-data market1501 Market-1501-v15.09.15.zip
    """
    from airnet_cli.workflows.prepare_data import prepare_market1501

    with _options(data_root, allow_partial, no_verify, workers) as options:
        prepared = prepare_market1501(source, options)
    _show(prepared, json=json)


def _cuhk03(boxes: Literal["labeled", "detected"], example: str) -> Callable[..., None]:
    """The command for one of the two cuts of CUHK03."""

    def cuhk03(
        source: Annotated[
            Path,
            typer.Argument(
                metavar="SOURCE",
                help="The new protocol's image folders, or cuhk-03.mat, or a folder or zip with "
                "either.",
                show_default=False,
            ),
        ],
        protocol: Annotated[
            Path | None,
            typer.Option(
                "--protocol",
                help="For cuhk-03.mat: the new protocol's .mat file, or its folder.",
                show_default="next to cuhk-03.mat",
            ),
        ] = None,
        data_root: DataRootOption = DEFAULT_DATA_ROOT,
        allow_partial: AllowPartialOption = False,
        no_verify: NoVerifyOption = False,
        workers: WorkersOption = None,
        json: JsonOption = False,
    ) -> None:
        from airnet_cli.workflows.prepare_data import prepare_cuhk03

        with _options(data_root, allow_partial, no_verify, workers) as options:
            prepared = prepare_cuhk03(source, options, boxes=boxes, protocol=protocol)
        _show(prepared, json=json)

    cuhk03.__doc__ = f"""Prepare CUHK03 (new protocol) with {boxes} boxes.

    Reading cuhk-03.mat needs pip install 'airnet[cuhk03]'; image folders need nothing.

    Example: airnet prepare-data cuhk03-{boxes} {example}
    """
    return cuhk03


def msmt17(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="The MSMT17_V1 or MSMT17_V2 folder, or a zip of it.",
            show_default=False,
        ),
    ],
    lists: Annotated[
        Literal["train+val", "train"],
        typer.Option(
            "--lists",
            help="Train on list_train and list_val together, as the paper does, or on list_train "
            "alone; scores of the two are not comparable.",
        ),
    ] = "train+val",
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    allow_partial: AllowPartialOption = False,
    no_verify: NoVerifyOption = False,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Prepare MSMT17, V1 or V2, by its lists and counts.

    A folder stays where it is; a zip is unpacked under the data root.

    Example: airnet prepare-data msmt17 MSMT17_V1/
    """
    from airnet_cli.workflows.prepare_data import prepare_msmt17

    with _options(data_root, allow_partial, no_verify, workers) as options:
        prepared = prepare_msmt17(source, options, lists=lists)
    _show(prepared, json=json)


def folder(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images, or a zip of one: one folder per person, or see --pattern.",
            show_default=False,
        ),
    ],
    name: NameOption = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            help="Where the ids stand in file names without their ending, such as "
            "'{person_id}_c{camera_id}_*'; with a / in it, in paths below SOURCE.",
            show_default="the first folder is the person, cameras are not known",
        ),
    ] = None,
    test_share: Annotated[
        float,
        typer.Option("--test-share", min=0, max=1, help="Test on this share of the people."),
    ] = 0.5,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, max=2**32 - 1, help="Draw test people and queries from this seed."
        ),
    ] = 1,
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    allow_partial: AllowPartialOption = False,
    no_verify: NoVerifyOption = False,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Prepare your own images from folders or file names.

    Nobody is in both training and test. Each camera of a test person gives one query, the rest is
    the gallery.

    Example: airnet prepare-data folder crops/ --name shop --pattern '{person_id}_c{camera_id}_*'
    """
    from airnet_cli.workflows.prepare_data import prepare_folder

    with _options(data_root, allow_partial, no_verify, workers, name) as options:
        prepared = prepare_folder(
            source, options, pattern=pattern, test_share=test_share, seed=seed
        )
    _show(prepared, json=json)


def csv(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="A .csv with the columns path, person_id, camera_id and split (train, query or "
            "gallery), or a zip that holds one and its images.",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Folder or zip that the paths are relative to.",
            show_default="the table's folder",
        ),
    ] = None,
    name: NameOption = None,
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    allow_partial: AllowPartialOption = False,
    no_verify: NoVerifyOption = False,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Prepare your own images from a table.

    In the gallery, person_id 0 is a distractor (wrong for every query), -1 is left out of scores.

    Example: airnet prepare-data csv shop.csv --images crops/
    """
    from airnet_cli.workflows.prepare_data import prepare_csv

    with _options(data_root, allow_partial, no_verify, workers, name) as options:
        prepared = prepare_csv(table, options, images=images)
    _show(prepared, json=json)


def demo(
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Draw from this seed.")
    ] = 1,
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    no_verify: NoVerifyOption = False,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Draw a set of people who do not exist, to try airnet.

    Example: airnet prepare-data demo --seed 7
    """
    from airnet_cli.workflows.prepare_data import prepare_demo

    with _options(data_root, False, no_verify, workers) as options:
        prepared = prepare_demo(options, seed=seed)
    _show(prepared, json=json)


NAME = "prepare-data"
HELP = "Prepare a data set: labels read, every image checked."
COMMANDS: Mapping[str, Callable[..., None]] = {
    "market1501": market1501,
    "cuhk03-labeled": _cuhk03("labeled", "cuhk03-np/"),
    "cuhk03-detected": _cuhk03("detected", "cuhk03_release/cuhk-03.mat --protocol configs/"),
    "msmt17": msmt17,
    "folder": folder,
    "csv": csv,
    "demo": demo,
}
"""The kinds of source, for `app.py` to register under `prepare-data`."""


@contextlib.contextmanager
def _options(
    data_root: Path,
    allow_partial: bool,
    no_verify: bool,
    workers: int | None,
    name: str | None = None,
) -> Iterator["PrepareOptions"]:
    """The options that all kinds share, with progress bars while the block runs."""
    from airnet_cli.workflows.preparing import PrepareOptions

    with progress_bars() as progress:
        yield PrepareOptions(
            data_root=data_root,
            name=name,
            allow_partial=allow_partial,
            verify=not no_verify,
            workers=workers,
            progress=progress,
        )


def _show(prepared: "PreparedDataset", *, json: bool) -> None:
    """Print the result: the table or JSON to stdout, notes to stderr."""
    for line in prepared.notes:
        note(f"note: {line}")
    if json:
        print_json(
            {
                "version": JSON_VERSION,
                "name": prepared.name,
                "manifest": str(prepared.manifest),
                "root": str(prepared.root),
                "counts": {split: asdict(count) for split, count in prepared.counts.items()},
                "published": None
                if prepared.published is None
                else {split: asdict(count) for split, count in prepared.published.items()},
                "notes": list(prepared.notes),
                "images_verified": prepared.images_verified,
            }
        )
        return
    rows: list[list[object]] = []
    for split, ours in prepared.counts.items():
        rows.append([split, *asdict(ours).values()])
        if prepared.published is not None and split in prepared.published:
            rows.append(["  published", *asdict(prepared.published[split]).values()])
    print_table([prepared.name, "images", "identities", "cameras", "distractors", "junk"], rows)
    checked = (
        f"{prepared.images_verified:,} images checked"
        if prepared.images_verified
        else "images not checked"
    )
    note(f"wrote {prepared.manifest} ({checked}); images in {prepared.root}")

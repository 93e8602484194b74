"""From images as they come to a prepared data set: a function for each kind of source.

Each says how labels are found; `preparing.prepare` does the rest. A folder is not copied: the
manifest points to it. Archives are unpacked, and generated images drawn, under the data root.
Nothing here loads torch.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from airnet_cli.core.data.archive import extract_zip
from airnet_cli.core.data.manifest import count_splits
from airnet_cli.core.data.people import split_people
from airnet_cli.core.data.problems import listed
from airnet_cli.core.data.readers import cuhk03, cuhk03_raw, folder, market1501, msmt17, table
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.core.files import is_file
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, UsageError
from airnet_cli.workflows.preparing import (
    UNPACKED,
    Labels,
    PreparedDataset,
    check_exists,
    full_or_partial,
    is_zip,
    name_of,
    prepare,
)


def prepare_market1501(
    source: Path,
    *,
    data_root: Path,
    allow_partial: bool = False,
    verify: bool = True,
    workers: int | None = None,
    progress: Progress = silent,
) -> PreparedDataset:
    """Prepare Market-1501 from the official folder or zip as data set `market1501`.

    Args:
        source: folder or zip; see `market1501.find_root`.
        data_root: the manifest becomes `data_root/market1501/manifest.jsonl`.
        allow_partial: turn what is missing or extra from an error into notes.
        verify: decode every image.
        workers: processes that decode; 0: this one; None: one for each processor.
        progress: told how far the work is.

    Raises:
        DataError: the source is not Market-1501, is incomplete or unsafe, or has broken images.
    """

    def read(folder: Path) -> Labels:
        root = market1501.find_root(folder)
        records = market1501.read(root, progress=progress)
        differences = market1501.differences(root, count_splits(records))
        return full_or_partial(
            "Market-1501", root, records, differences, allow_partial=allow_partial
        )

    def unpack(stage: Path) -> Labels:
        # The hand-drawn boxes of gt_bbox, much of the archive, are not needed.
        folders = market1501.FOLDERS.values()
        extract_zip(source, stage, keep=lambda file: file.parent.name in folders, progress=progress)
        return read(stage)

    check_exists(source)
    return prepare(
        "market1501",
        source=source,
        labels=read if source.is_dir() else unpack,
        is_staged=not source.is_dir(),
        split_rule=market1501.SPLIT_RULE,
        published=market1501.PUBLISHED,
        data_root=data_root,
        verify=verify,
        workers=workers,
        progress=progress,
    )


def prepare_cuhk03(
    source: Path,
    *,
    boxes: cuhk03.Boxes,
    data_root: Path,
    protocol: Path | None = None,
    allow_partial: bool = False,
    verify: bool = True,
    workers: int | None = None,
    progress: Progress = silent,
) -> PreparedDataset:
    """Prepare one of CUHK03's two cuts by the new protocol as `cuhk03-labeled` or `-detected`.

    Args:
        source: the new protocol's image folders, or `cuhk-03.mat`, or a folder or zip with either.
        boxes: labeled or detected.
        data_root: the manifest becomes `data_root/cuhk03-BOXES/manifest.jsonl`.
        protocol: the new protocol's `.mat`, or its folder; None: beside `cuhk-03.mat`.
        allow_partial: turn what is missing or extra from an error into notes.
        verify: decode every image.
        workers: processes that decode; 0: this one; None: one for each processor.
        progress: told how far the work is.

    Raises:
        DataError: the source is not CUHK03, is incomplete or unsafe, or has broken images; or
            h5py and scipy, which read `.mat`, are not installed.
        UsageError: a protocol for image folders, whose split is that of the folders.
    """

    def read(root: Path) -> Labels:
        if protocol is not None:
            raise UsageError(
                f"the split of {root} is that of its folders, so --protocol {protocol} does not "
                f"fit; leave it out, or give {cuhk03_raw.IMAGES_FILE}"
            )
        return complete(root, cuhk03.read(root, progress=progress), [])

    def extract(images: Path, stage: Path) -> Labels:
        beside = [images.parent, images.parent.parent, source.parent]
        split = cuhk03_raw.find_protocol(boxes, given=protocol, places=beside)
        cells = cuhk03_raw.read_protocol(split)
        root = stage / boxes
        missing = cuhk03_raw.extract(images, cells, root, boxes=boxes, progress=progress)
        absent = set(missing)
        problems = [f"{len(missing):,} images are not in {images.name} ({listed(missing)})"]
        return complete(
            root,
            [cell.record for cell in cells if cell.record.path not in absent],
            problems if missing else [],
        )

    def unpack(stage: Path) -> Labels:
        unpacked = stage / UNPACKED
        unpacked.mkdir()
        extract_zip(source, unpacked, keep=_is_of_cuhk03, progress=progress)
        if root := cuhk03.find_root(unpacked, boxes=boxes):
            root = root.rename(stage / boxes)
            labels = read(root)
        elif images := cuhk03_raw.find_images(unpacked):
            labels = extract(images, stage)
        else:
            raise nothing_there()
        shutil.rmtree(unpacked, ignore_errors=True)
        return labels

    def complete(root: Path, records: Sequence[ImageRecord], problems: Sequence[str]) -> Labels:
        differences = cuhk03.differences(root, count_splits(records), boxes=boxes)
        return full_or_partial(
            "CUHK03", root, records, [*problems, *differences], allow_partial=allow_partial
        )

    def nothing_there() -> DataError:
        return DataError(
            f"{source} is not CUHK03: it has neither the new protocol's folders "
            f"({boxes}/{cuhk03.FOLDERS['train']}, ...) nor {cuhk03_raw.IMAGES_FILE}; "
            "give the folder or zip that has one of them"
        )

    check_exists(source)
    labels: Callable[[Path], Labels]
    if source.is_dir():
        if root := cuhk03.find_root(source, boxes=boxes):
            labels, is_staged = (lambda _: read(root)), False
        elif images := cuhk03_raw.find_images(source):
            labels, is_staged = (lambda stage: extract(images, stage)), True
        else:
            raise nothing_there()
    elif source.suffix.lower() == ".mat":
        labels, is_staged = (lambda stage: extract(source, stage)), True
    else:
        labels, is_staged = unpack, True
    return prepare(
        f"cuhk03-{boxes}",
        source=source,
        labels=labels,
        is_staged=is_staged,
        split_rule=cuhk03.split_rule(boxes),
        published=cuhk03.PUBLISHED[boxes],
        data_root=data_root,
        verify=verify,
        workers=workers,
        progress=progress,
    )


def prepare_msmt17(
    source: Path,
    *,
    data_root: Path,
    lists: msmt17.Lists = "train+val",
    allow_partial: bool = False,
    verify: bool = True,
    workers: int | None = None,
    progress: Progress = silent,
) -> PreparedDataset:
    """Prepare MSMT17, V1 or V2, from its official folder or a zip of it as data set `msmt17`.

    Args:
        source: folder or zip; see `msmt17.find_layout`.
        data_root: the manifest becomes `data_root/msmt17/manifest.jsonl`.
        lists: which lists train: `train+val` as in the paper, or `train` alone.
        allow_partial: turn what is missing or extra from an error into notes.
        verify: decode every image.
        workers: processes that decode; 0: this one; None: one for each processor.
        progress: told how far the work is.

    Raises:
        DataError: the source is not MSMT17, is incomplete or unsafe, or has broken images.
    """

    def read(folder: Path) -> Labels:
        layout = msmt17.find_layout(folder)
        found = msmt17.read(layout, lists=lists, progress=progress)
        labels = full_or_partial(
            "MSMT17", layout.root, found.records, found.problems, allow_partial=allow_partial
        )
        return replace(
            labels, split_rule=msmt17.split_rule(layout, lists), published=found.published
        )

    def unpack(stage: Path) -> Labels:
        extract_zip(source, stage, keep=_is_of_msmt17, progress=progress)
        return read(stage)

    check_exists(source)
    return prepare(
        "msmt17",
        source=source,
        labels=read if source.is_dir() else unpack,
        is_staged=not source.is_dir(),
        split_rule="MSMT17",
        published=msmt17.PUBLISHED,
        data_root=data_root,
        verify=verify,
        workers=workers,
        progress=progress,
    )


def prepare_folder(
    source: Path,
    *,
    data_root: Path,
    pattern: str | None,
    test_share: float,
    seed: int,
    name: str | None = None,
    allow_partial: bool = False,
    verify: bool = True,
    workers: int | None = None,
    progress: Progress = silent,
) -> PreparedDataset:
    """Prepare one's own images from a folder for each person, or from names that say who it is.

    Args:
        source: folder, or a zip of one.
        data_root: the manifest becomes `data_root/NAME/manifest.jsonl`.
        pattern: where ids stand in the names (`readers.folder`); None: the folders are the people.
        test_share: share of the identities to test on, from 0 to 1; the others train.
        seed: of who is tested on and which of their images are queries.
        name: of the data set; None: that of the folder or zip.
        allow_partial: leave images of which nothing is known out, with a note.
        verify: decode every image.
        workers: processes that decode; 0: this one; None: one for each processor.
        progress: told how far the work is.

    Raises:
        DataError: no images, images of which nothing is known (the first ten are listed), a split
            on which nothing could be scored, broken images, or an unsafe archive.
        UsageError: a pattern that can't be understood.
    """
    understood = None if pattern is None else folder.parse_pattern(pattern)

    def read(root: Path) -> Labels:
        found = folder.read(root, understood, progress=progress)
        notes = []
        if found.strange:
            why = "lie in no folder of a person" if pattern is None else f"do not fit {pattern!r}"
            what = f"{len(found.strange):,} images under {root} {why}: {listed(found.strange)}"
            if not allow_partial or not found.images:
                raise DataError(
                    f"{what}; move or rename them, correct --pattern, "
                    "or leave them out with --allow-partial"
                )
            notes = [f"left out: {what}"]
        split = split_people(found.images, test_share=test_share, seed=seed)
        if split.num_one_camera:
            notes.append(
                f"{split.num_one_camera:,} of {split.num_test:,} test identities have no second "
                "camera (or image) to be found by: they are in the gallery only"
            )
        for what, names in (("people", split.person_names), ("cameras", split.camera_names)):
            if names:
                notes.append(
                    f"{what} were numbered from 1 to {len(names):,}; "
                    "the manifest's header has their names"
                )
        return Labels(
            root=root,
            records=split.records,
            notes=notes,
            person_names=split.person_names,
            camera_names=split.camera_names,
        )

    def unpack(stage: Path) -> Labels:
        extract_zip(source, stage, progress=progress)
        inside = [path for path in stage.iterdir() if not path.name.startswith(".")]
        # Most archives wrap everything in one folder; a single person is not meant.
        wraps = len(inside) == 1 and inside[0].is_dir()
        return read(inside[0] if wraps else stage)

    check_exists(source)
    if not source.is_dir() and not is_zip(source):
        raise DataError(f"{source} is neither a folder nor a zip; give the folder of the images")
    where = "one folder per person" if pattern is None else f"names like {pattern}"
    return prepare(
        name or name_of(source.resolve()),
        source=source,
        labels=read if source.is_dir() else unpack,
        is_staged=not source.is_dir(),
        split_rule=f"{where}; {test_share:g} of the identities to test, drawn with seed {seed}",
        published=None,
        data_root=data_root,
        verify=verify,
        workers=workers,
        progress=progress,
    )


def prepare_csv(
    source: Path,
    *,
    data_root: Path,
    images: Path | None = None,
    name: str | None = None,
    allow_partial: bool = False,
    verify: bool = True,
    workers: int | None = None,
    progress: Progress = silent,
) -> PreparedDataset:
    """Prepare one's own images from a table (`readers.table`), or from a zip with table and images.

    Args:
        source: CSV file, or a zip that holds exactly one and the images that it names.
        data_root: the manifest becomes `data_root/NAME/manifest.jsonl`.
        images: folder or zip that the table's paths are relative to; None: the table's own folder.
        name: of the data set; None: the file name without its ending.
        allow_partial: leave rows whose image is not there out, with a note, instead of an error.
        verify: decode every image.
        workers: processes that decode; 0: this one; None: one for each processor.
        progress: told how far the work is.

    Raises:
        DataError: bad rows (the first ten are listed), missing or broken images, an unsafe archive.
        UsageError: `images` for a zip, which has its own.
    """

    def read(path: Path, root: Path) -> Labels:
        return _table_labels(path, table.read(path), root, allow_partial=allow_partial)

    def unpack_both(stage: Path) -> Labels:
        extract_zip(source, stage, progress=progress)
        tables = sorted(path for path in stage.rglob("*") if path.suffix.lower() == ".csv")
        if len(tables) != 1:
            found = ", ".join(path.relative_to(stage).as_posix() for path in tables[:10])
            raise DataError(
                f"{source} must hold exactly one .csv table, and holds "
                f"{f'{len(tables)}: {found}' if tables else 'none'}; "
                f"take the table out and run: airnet prepare-data csv TABLE --images {source}"
            )
        return read(tables[0], tables[0].parent)

    def unpack_images(stage: Path) -> Labels:
        assert images is not None
        rows = table.read(source)
        extract_zip(images, stage, progress=progress)
        return _table_labels(source, rows, _fitting(stage, rows), allow_partial=allow_partial)

    check_exists(source)
    if name is None:
        name = name_of(source)
    if source.is_dir():
        raise DataError(f"{source} is a folder; give the CSV table, and the folder with --images")
    labels: Callable[[Path], Labels]
    if is_zip(source):
        if images is not None:
            raise UsageError(
                f"{source} is an archive with its own images, so --images {images} does not fit; "
                "leave --images out or give the .csv table"
            )
        labels, is_staged = unpack_both, True
    elif images is not None and not images.is_dir():
        check_exists(images)
        labels, is_staged = unpack_images, True
    else:
        root = source.parent if images is None else images
        labels, is_staged = (lambda _: read(source, root)), False
    return prepare(
        name,
        source=images if images is not None else source,
        labels=labels,
        is_staged=is_staged,
        split_rule=f"the column split of {source.name}",
        published=None,
        data_root=data_root,
        verify=verify,
        workers=workers,
        progress=progress,
    )


def prepare_demo(
    *,
    data_root: Path,
    seed: int,
    verify: bool = True,
    workers: int | None = None,
    progress: Progress = silent,
) -> PreparedDataset:
    """Draw the generated set and prepare it as data set `demo`; a seed always draws the same set.

    Args:
        data_root: the manifest becomes `data_root/demo/manifest.jsonl`, images go beside it.
        seed: of everything that is drawn.
        verify: decode every image.
        workers: processes that decode; 0: this one; None: one for each processor.
        progress: told how far the work is.

    Raises:
        DataError: the images can't be written.
    """
    from airnet_cli.core.data.generated import generate

    def draw(stage: Path) -> Labels:
        return Labels(root=stage, records=generate(stage, seed=seed, progress=progress))

    return prepare(
        "demo",
        source=data_root,
        labels=draw,
        is_staged=True,
        split_rule=f"generated from seed {seed}",
        published=None,
        data_root=data_root,
        verify=verify,
        workers=workers,
        progress=progress,
    )


def _is_of_cuhk03(file: PurePosixPath) -> bool:
    """Tell what of an archive is needed."""
    return file.suffix.lower() == ".mat" or file.parent.name in cuhk03.FOLDERS.values()


def _is_of_msmt17(file: PurePosixPath) -> bool:
    """Tell what of an archive is needed."""
    folders = [name for names in msmt17.FOLDERS.values() for name in names]
    return file.name in msmt17.LISTS or file.parent.parent.name in folders


def _table_labels(
    path: Path, rows: Sequence[table.TableRow], root: Path, *, allow_partial: bool
) -> Labels:
    """Hold a table against the files under `root`."""
    missing = [row for row in rows if not is_file(root / row.record.path)]
    if not missing:
        return Labels(root=root, records=[row.record for row in rows])
    named = listed([f"line {row.line}: {row.record.path}" for row in missing])
    what = f"{len(missing):,} of {len(rows):,} images of {path.name} are not under {root}: {named}"
    if not allow_partial or len(missing) == len(rows):
        raise DataError(
            f"{what}; give their folder or zip with --images, "
            "or leave them out with --allow-partial"
        )
    absent = set(missing)
    return Labels(
        root=root,
        records=[row.record for row in rows if row not in absent],
        notes=[f"left out: {what}"],
    )


def _fitting(stage: Path, rows: Sequence[table.TableRow]) -> Path:
    """Find what the paths are relative to: most archives wrap everything in one folder."""
    folders = [stage, *sorted(path for path in stage.iterdir() if path.is_dir())]
    return max(folders, key=lambda folder: sum(is_file(folder / row.record.path) for row in rows))

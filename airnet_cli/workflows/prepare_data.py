"""From images as they come to a prepared data set: read labels, check images, write the manifest.

A folder is not copied: the manifest points to it. Archives are unpacked and generated images drawn
in a temporary folder under the data root, which takes the place of an earlier one only when all has
been checked; the manifest is written last. Nothing here loads torch.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airnet_cli.core.data.archive import extract_zip, staged_folder
from airnet_cli.core.data.manifest import (
    Manifest,
    SplitCounts,
    count_splits,
    manifest_path,
    write_manifest,
)
from airnet_cli.core.data.readers import market1501, table
from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.core.data.verify import raise_for_bad, verify_images
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, UsageError

IMAGES = "images"
"""Folder beside the manifest for images that were unpacked or generated."""


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """What was prepared, and how it compares with what was published."""

    name: str
    manifest: Path
    root: Path
    """Absolute folder of the images."""
    counts: Mapping[Split, SplitCounts]
    published: Mapping[Split, SplitCounts] | None
    """Counts of the full set; None where nothing is published."""
    notes: tuple[str, ...]
    """What is missing, extra or unusual, one line each."""
    images_verified: int
    """Images that were opened and decoded; 0 when that was skipped."""


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

    def read(folder: Path) -> _Labels:
        root = market1501.find_root(folder)
        records = market1501.read(root, progress=progress)
        differences = market1501.differences(root, count_splits(records))
        if differences and not allow_partial:
            raise DataError(
                f"{root} is not the full Market-1501: {'; '.join(differences)}; "
                "complete it, or pass --allow-partial to use it as it is"
            )
        return _Labels(root=root, records=records, notes=differences)

    def unpack(stage: Path) -> _Labels:
        # The hand-drawn boxes of gt_bbox, much of the archive, are not needed.
        folders = market1501.FOLDERS.values()
        extract_zip(source, stage, keep=lambda file: file.parent.name in folders, progress=progress)
        return read(stage)

    _check_exists(source)
    return _prepare(
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

    def read(path: Path, root: Path) -> _Labels:
        return _table_labels(path, table.read(path), root, allow_partial=allow_partial)

    def unpack_both(stage: Path) -> _Labels:
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

    def unpack_images(stage: Path) -> _Labels:
        assert images is not None
        rows = table.read(source)
        extract_zip(images, stage, progress=progress)
        return _table_labels(source, rows, _fitting(stage, rows), allow_partial=allow_partial)

    _check_exists(source)
    if name is None:
        name = _name_of(source)
    if source.is_dir():
        raise DataError(f"{source} is a folder; give the CSV table, and the folder with --images")
    labels: Callable[[Path], _Labels]
    if _is_zip(source):
        if images is not None:
            raise UsageError(
                f"{source} is an archive with its own images, so --images {images} does not fit; "
                "leave --images out or give the .csv table"
            )
        labels, is_staged = unpack_both, True
    elif images is not None and not images.is_dir():
        _check_exists(images)
        labels, is_staged = unpack_images, True
    else:
        root = source.parent if images is None else images
        labels, is_staged = (lambda _: read(source, root)), False
    return _prepare(
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

    def draw(stage: Path) -> _Labels:
        return _Labels(root=stage, records=generate(stage, seed=seed, progress=progress))

    return _prepare(
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


@dataclass(frozen=True, slots=True)
class _Labels:
    """What a reader found out."""

    root: Path
    records: Sequence[ImageRecord]
    notes: Sequence[str] = ()


def _prepare(
    name: str,
    *,
    source: Path,
    labels: Callable[[Path], _Labels],
    is_staged: bool,
    split_rule: str,
    published: Mapping[Split, SplitCounts] | None,
    data_root: Path,
    verify: bool,
    workers: int | None,
    progress: Progress,
) -> PreparedDataset:
    """Read labels in `source`, or in a temporary folder that `labels` fills; check; write."""
    path = manifest_path(data_root, name)

    def checked(folder: Path) -> tuple[_Labels, int]:
        found = labels(folder)
        paths = {record.path for record in found.records} if verify else set()
        processes = _processors() if workers is None else workers
        bad = verify_images(found.root, paths, workers=processes, progress=progress)
        raise_for_bad(found.root, bad)
        return found, len(paths)

    if is_staged:
        images = path.parent / IMAGES
        with staged_folder(images) as stage:
            try:
                found, verified = checked(stage)
            except DataError as error:
                # The temporary folder is gone when the message is read: name what the user gave.
                raise DataError(str(error).replace(str(stage), str(source))) from error
        found = replace(found, root=images / found.root.relative_to(stage))
    else:
        found, verified = checked(source)
    written = write_manifest(
        path, name=name, root=found.root, records=found.records, split_rule=split_rule
    )
    return PreparedDataset(
        name=name,
        manifest=path,
        root=written.root,
        counts=written.counts,
        published=published,
        notes=(*found.notes, *_unusual(written)),
        images_verified=verified,
    )


def _table_labels(
    path: Path, rows: Sequence[table.TableRow], root: Path, *, allow_partial: bool
) -> _Labels:
    """Hold a table against the files under `root`."""
    missing = [row for row in rows if not (root / row.record.path).is_file()]
    if not missing:
        return _Labels(root=root, records=[row.record for row in rows])
    listed = ", ".join(f"line {row.line}: {row.record.path}" for row in missing[: table.LISTED])
    if missing[table.LISTED :]:
        listed += f" and {len(missing) - table.LISTED:,} more"
    what = f"{len(missing):,} of {len(rows):,} images of {path.name} are not under {root}: {listed}"
    if not allow_partial or len(missing) == len(rows):
        raise DataError(
            f"{what}; give their folder or zip with --images, "
            "or leave them out with --allow-partial"
        )
    absent = set(missing)
    return _Labels(
        root=root,
        records=[row.record for row in rows if row not in absent],
        notes=[f"left out: {what}"],
    )


def _fitting(stage: Path, rows: Sequence[table.TableRow]) -> Path:
    """Find what the paths are relative to: most archives wrap everything in one folder."""
    folders = [stage, *sorted(path for path in stage.iterdir() if path.is_dir())]
    return max(
        folders, key=lambda folder: sum((folder / row.record.path).is_file() for row in rows)
    )


def _check_exists(source: Path) -> None:
    """Raise unless the path that the user gave is there."""
    if not source.exists():
        raise DataError(f"{source} does not exist; give the path of a file or folder that does")


def _name_of(source: Path) -> str:
    """Name a data set after its file."""
    try:
        manifest_path(Path(), source.stem)
    except DataError as error:
        raise DataError(f"{error}; choose one with --name NAME") from error
    return source.stem


def _is_zip(source: Path) -> bool:
    """Tell by name or first bytes: a table never begins with them."""
    if source.suffix.lower() == ".zip":
        return True
    try:
        with source.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def _processors() -> int:
    """Count the processors to decode with; more than 16 wait for the disk."""
    return min(16, os.cpu_count() or 1)


def _unusual(written: Manifest) -> list[str]:
    """Note what spoils training or scores without being an error."""
    notes = [f"{split}: no images" for split in SPLITS if written.counts[split].images == 0]
    ids = {
        split: {record.person_id for record in written.split(split)} - {JUNK} for split in SPLITS
    }
    for split in SPLITS[1:]:
        # A distractor is nobody, whoever is called 0 in training.
        shared = sorted((ids["train"] & ids[split]) - {DISTRACTOR})
        if shared:
            listed = ", ".join(str(person_id) for person_id in shared[:5])
            notes.append(
                f"{len(shared):,} identities of train are also in {split} "
                f"({listed}{', ...' if shared[5:] else ''}): "
                "scores on people seen in training say little about others"
            )
    cameras: defaultdict[int, set[int]] = defaultdict(set)
    for record in written.split("gallery"):
        cameras[record.person_id].add(record.camera_id)
    query = written.split("query")
    absent = sum(record.person_id not in cameras for record in query)
    same_camera = sum(cameras.get(record.person_id) == {record.camera_id} for record in query)
    if absent:
        notes.append(
            f"{absent:,} of {len(query):,} queries have no gallery image of their identity"
        )
    if same_camera:
        notes.append(
            f"{same_camera:,} of {len(query):,} queries have gallery images from their own camera "
            "only, which evaluation leaves out"
        )
    return notes

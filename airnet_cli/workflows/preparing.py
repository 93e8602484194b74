"""What preparing any data set comes down to: find labels, check images, write the manifest.

`prepare` does it, with a function that reads the labels of one kind of source. Images that are
unpacked, drawn or extracted go to a temporary folder under the data root, which takes the place of
an earlier one only when all has been checked; the manifest is written last. A process that
prepares a data set locks its folder.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from airnet_cli.core.data.archive import remove_stages, staged_folder
from airnet_cli.core.data.manifest import Manifest, SplitCounts, manifest_path, write_manifest
from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.core.data.verify import raise_for_bad, verify_images
from airnet_cli.core.files import lock_folder, remove_parts
from airnet_cli.core.progress import Progress
from airnet_cli.errors import DataError

IMAGES = "images"
"""Folder beside the manifest for images that were unpacked or generated."""

UNPACKED = ".unpacked"
"""Folder for what an archive has, where the images are made of it; gone when they are."""


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """What was prepared, and how it compares with what was published."""

    name: str
    manifest: Path
    root: Path
    """Absolute folder of the images."""
    counts: Mapping[Split, SplitCounts]
    published: Mapping[Split, SplitCounts] | None
    """Counts of the full set, of the splits for which some are published; None if of no split."""
    notes: tuple[str, ...]
    """What is missing, extra or unusual, one line each."""
    images_verified: int
    """Images that were opened and decoded; 0 when that was skipped."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a reader found out."""

    root: Path
    records: Sequence[ImageRecord]
    notes: Sequence[str] = ()
    person_names: Mapping[int, str] = field(default_factory=dict)
    camera_names: Mapping[int, str] = field(default_factory=dict)
    split_rule: str | None = None
    """Where only the reader knows it."""
    published: Mapping[Split, SplitCounts] | None = None
    """Where only the reader knows which part of them holds."""


def prepare(
    name: str,
    *,
    source: Path,
    labels: Callable[[Path], Labels],
    is_staged: bool,
    split_rule: str,
    published: Mapping[Split, SplitCounts] | None,
    data_root: Path,
    verify: bool,
    workers: int | None,
    progress: Progress,
) -> PreparedDataset:
    """Read labels in `source`, or in a temporary folder that `labels` fills; check; write.

    Raises:
        DataError: as `labels` does; bad images; a place that can't be written, or in which another
            process prepares the same data set.
    """
    path = manifest_path(data_root, name)

    def checked(folder: Path) -> tuple[Labels, int]:
        found = labels(folder)
        paths = {record.path for record in found.records} if verify else set()
        processes = _processors() if workers is None else workers
        bad = verify_images(found.root, paths, workers=processes, progress=progress)
        raise_for_bad(found.root, bad)
        return found, len(paths)

    def write(manifest: Path, found: Labels) -> Manifest:
        return write_manifest(
            manifest,
            name=name,
            root=found.root,
            records=found.records,
            split_rule=found.split_rule or split_rule,
            person_names=found.person_names,
            camera_names=found.camera_names,
        )

    new = path.with_name(f".{path.name}.new")
    with _alone_in(path.parent, new):
        if is_staged:
            images = path.parent / IMAGES
            with staged_folder(images, record=path) as stage:
                try:
                    found, verified = checked(stage)
                except DataError as error:
                    # The temporary folder is gone when the message is read: name what was given.
                    named = str(error).replace(str(stage / UNPACKED), str(source))
                    raise DataError(named.replace(str(stage), str(source))) from error
                found = replace(found, root=images / found.root.relative_to(stage))
                # Before the folder takes its place: a disk that is full shows now.
                written = write(new, found)
            new.replace(path)
        else:
            found, verified = checked(source)
            written = write(path, found)
    return PreparedDataset(
        name=name,
        manifest=path,
        root=written.root,
        counts=written.counts,
        published=published if found.published is None else found.published,
        notes=(*found.notes, *_unusual(written)),
        images_verified=verified,
    )


@contextlib.contextmanager
def _alone_in(folder: Path, new: Path) -> Iterator[None]:
    """Lock the data set's folder and remove what a killed process left there (and the manifest
    `new`, which never took its place); remove the folder if it stays empty.
    """
    empty = [folder] if folder.parent.exists() else [folder, folder.parent]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"can't write under {folder}: {error.strerror or error}; "
            "make it writable or choose another --data-root"
        ) from error
    try:
        with lock_folder(folder) as is_ours:
            if not is_ours:
                raise DataError(
                    f"data set {folder.name!r} is being prepared under {folder.parent} by another "
                    "process; wait for it, or choose another --data-root"
                )
            remove_stages(folder / IMAGES)
            remove_parts(folder)
            new.unlink(missing_ok=True)
            try:
                yield
            finally:
                new.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # not empty: there is a data set, old or new
            for each in empty:
                each.rmdir()


def full_or_partial(
    what: str,
    root: Path,
    records: Sequence[ImageRecord],
    differences: Sequence[str],
    *,
    allow_partial: bool,
) -> Labels:
    """Refuse a published set that is not as published, or note what differs."""
    if differences and not allow_partial:
        raise DataError(
            f"{root} is not the full {what}: {'; '.join(differences)}; "
            "complete it, or pass --allow-partial to use it as it is"
        )
    return Labels(root=root, records=records, notes=differences)


def check_exists(source: Path) -> None:
    """Raise unless the path that the user gave is there."""
    if not source.exists():
        raise DataError(f"{source} does not exist; give the path of a file or folder that does")
    if not source.is_dir() and not source.is_file():
        raise DataError(f"{source} is a pipe or device; write it into a file and give that")
    if source.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".rar", ".7z")):
        raise DataError(
            f"{source} is an archive of a kind that airnet does not unpack (it does .zip); "
            "unpack it yourself and give the folder"
        )


def name_of(source: Path) -> str:
    """Name a data set after its file or folder."""
    name = source.name if source.is_dir() else source.stem
    try:
        manifest_path(Path(), name)
    except DataError as error:
        raise DataError(f"{error}; choose one with --name NAME") from error
    return name


def is_zip(source: Path) -> bool:
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
    if len({record.camera_id for record in (*query, *written.split("gallery"))}) == 1:
        notes.append(
            "query and gallery are by one camera, and images by the query's own camera are left "
            "out of scores: run airnet evaluate --no-camera-filter, and airnet train --set "
            "evaluation.camera_filter=false"
        )
    elif same_camera:
        notes.append(
            f"{same_camera:,} of {len(query):,} queries have gallery images from their own camera "
            "only, which evaluation leaves out"
        )
    return notes

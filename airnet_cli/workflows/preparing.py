"""Preparing any data set: read labels, check every image, write the manifest.

`prepare` does it for every kind of source; `prepare_data.py` has a function for each kind that
reads the labels. A folder of images stays where it is. Images that are unpacked, extracted or drawn
go to a temporary folder, which replaces an earlier one only after all checks. The manifest is
written last.
"""

import contextlib
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from airnet_cli.core.data.archive import remove_stages, staged_folder
from airnet_cli.core.data.manifest import Manifest, SplitCounts, manifest_path, write_manifest
from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.core.data.verify import raise_for_bad, verify_images
from airnet_cli.core.files import lock_folder, remove_parts
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError

IMAGES = "images"
"""Folder next to the manifest, for images that were unpacked or generated."""

UNPACKED = ".unpacked"
"""Folder for the files of an archive from which images are extracted; removed afterwards."""

MOST_PROCESSES = 16
"""More processes that decode images only wait for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Options that all kinds of data sets share."""

    data_root: Path
    """The manifest becomes `data_root/NAME/manifest.jsonl`."""
    name: str | None = None
    """Name of the data set; None: the published name, or that of the source."""
    allow_partial: bool = False
    """Report what is missing or extra as notes, not as an error."""
    verify: bool = True
    """Decode every image."""
    workers: int | None = None
    """Processes that decode; 0: this process; None: one for each processor."""
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """The prepared data set, next to its published counts."""

    name: str
    manifest: Path
    root: Path
    """Absolute folder of the images."""
    counts: Mapping[Split, SplitCounts]
    published: Mapping[Split, SplitCounts] | None
    """Published counts of the complete data set, by split; None where nothing is published."""
    notes: tuple[str, ...]
    """What is missing, extra or unusual, one line each."""
    images_verified: int
    """Images that were opened and decoded; 0 if that was skipped."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The result of reading a source."""

    root: Path
    records: Sequence[ImageRecord]
    split_rule: str
    """Where the split comes from, in one line."""
    notes: Sequence[str] = ()
    person_names: Mapping[int, str] = field(default_factory=dict)
    camera_names: Mapping[int, str] = field(default_factory=dict)
    published: Mapping[Split, SplitCounts] | None = None


def prepare(
    name: str,
    source: Path,
    labels: Callable[[Path], Labels],
    options: PrepareOptions,
    *,
    in_stage: bool,
) -> PreparedDataset:
    """Read the labels, check the images, write the manifest.

    Args:
        name: of the data set.
        source: what the user gave, for messages.
        labels: reads a folder of images: `source`, or a temporary folder that it fills first.
        options: shared by all kinds.
        in_stage: give `labels` a temporary folder, which becomes `data_root/NAME/images`.

    Raises:
        DataError: as `labels` does; broken images; a folder that can't be written, or in which
            another process prepares the same data set.
    """
    path = manifest_path(options.data_root, name)

    def read(folder: Path) -> tuple[Labels, int]:
        found = labels(folder)
        paths = {record.path for record in found.records} if options.verify else set()
        workers = min(MOST_PROCESSES, os.cpu_count() or 1)
        workers = workers if options.workers is None else options.workers
        bad = verify_images(found.root, paths, workers=workers, progress=options.progress)
        raise_for_bad(found.root, bad)
        return found, len(paths)

    new = path.with_name(f".{path.name}.new")
    with _locked(path.parent, new):
        if in_stage:
            images = path.parent / IMAGES
            with staged_folder(images, record=path) as stage:
                try:
                    found, verified = read(stage)
                except DataError as error:
                    raise DataError(_naming(source, stage, str(error))) from error
                found = replace(
                    found,
                    root=images / found.root.relative_to(stage),
                    notes=[_naming(source, stage, note) for note in found.notes],
                )
                # Before the folder is renamed: a full disk shows now.
                written = _write(new, name, found)
            new.replace(path)
        else:
            found, verified = read(source)
            written = _write(path, name, found)
    return PreparedDataset(
        name=name,
        manifest=path,
        root=written.root,
        counts=written.counts,
        published=found.published,
        notes=(*found.notes, *_unusual(written)),
        images_verified=verified,
    )


def _write(path: Path, name: str, found: Labels) -> Manifest:
    return write_manifest(
        path,
        name=name,
        root=found.root,
        records=found.records,
        split_rule=found.split_rule,
        person_names=found.person_names,
        camera_names=found.camera_names,
    )


def _naming(source: Path, stage: Path, text: str) -> str:
    """Name the source instead of the temporary folder, which the user never sees."""
    return text.replace(str(stage / UNPACKED), str(source)).replace(str(stage), str(source))


@contextlib.contextmanager
def _locked(folder: Path, new: Path) -> Iterator[None]:
    """Lock the data set's folder and remove what a killed process left there.

    The folder is removed again if it stays empty.
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
        with contextlib.suppress(OSError):  # not empty: it holds a data set
            for each in empty:
                each.rmdir()


def check_source(source: Path) -> None:
    """Refuse a path that is missing, or an archive of another kind than zip.

    Raises:
        DataError: it can't be a source.
    """
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
    """The name of a data set after its file or folder.

    Raises:
        DataError: it can't be a name.
    """
    name = source.name if source.is_dir() else source.stem
    try:
        manifest_path(Path(), name)
    except DataError as error:
        raise DataError(f"{error}; choose one with --name NAME") from error
    return name


def is_zip(source: Path) -> bool:
    """Whether a file is a zip, by its name or content."""
    return source.suffix.lower() == ".zip" or zipfile.is_zipfile(source)


def _unusual(written: Manifest) -> list[str]:
    """Note what spoils training or scores without being an error."""
    notes = [f"{split}: no images" for split in SPLITS if written.counts[split].images == 0]
    ids = {
        split: {record.person_id for record in written.split(split)} - {JUNK} for split in SPLITS
    }
    for split in SPLITS[1:]:
        # Distractors are nobody, even if a training person has the id 0.
        shared = sorted((ids["train"] & ids[split]) - {DISTRACTOR})
        if shared:
            listed = ", ".join(str(person_id) for person_id in shared[:5])
            notes.append(
                f"{len(shared):,} identities of train are also in {split} "
                f"({listed}{', ...' if shared[5:] else ''}): "
                "scores on people seen in training say little about others"
            )
    return notes + _unanswerable(written)


def _unanswerable(written: Manifest) -> list[str]:
    """Note queries that have no right answer."""
    cameras: defaultdict[int, set[int]] = defaultdict(set)
    for record in written.split("gallery"):
        cameras[record.person_id].add(record.camera_id)
    query = written.split("query")
    absent = sum(record.person_id not in cameras for record in query)
    same_camera = sum(cameras.get(record.person_id) == {record.camera_id} for record in query)
    notes = []
    if absent:
        notes.append(
            f"{absent:,} of {len(query):,} queries have no gallery image of their identity"
        )
    if len({record.camera_id for record in (*query, *written.split("gallery"))}) == 1:
        notes.append(
            "query and gallery are by one camera, and images by the query's own camera are left "
            "out of scores: run airnet evaluate --no-camera-filter, and airnet train --preset "
            "NAME --set evaluation.camera_filter=false"
        )
    elif same_camera:
        notes.append(
            f"{same_camera:,} of {len(query):,} queries have gallery images from their own camera "
            "only, which evaluation leaves out"
        )
    return notes

"""From images as they come to a prepared data set: read labels, check every image, write the manifest.

A folder is not copied: the manifest points to it. An archive is unpacked under the data root; it takes the place of
an earlier one only when all has been checked. Nothing here loads torch.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from airnet_cli.core.data import manifest as manifests
from airnet_cli.core.data.archive import extract_zip, staged_folder
from airnet_cli.core.data.manifest import Manifest, SplitCounts
from airnet_cli.core.data.readers import market1501
from airnet_cli.core.data.records import DISTRACTOR, JUNK, SPLITS, ImageRecord, Split
from airnet_cli.core.data.verify import raise_for_bad, verify_images
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError


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
    workers: int = 0,
    progress: Progress = silent,
) -> PreparedDataset:
    """Prepare Market-1501 from the official folder or the official zip as data set `market1501`.

    Args:
        source: folder or zip; see `readers.market1501.find_root`.
        data_root: the manifest becomes `data_root/market1501/manifest.jsonl`.
        allow_partial: turn what is missing or extra from an error into notes.
        verify: decode every image.
        workers: processes that decode; 0 for none.
        progress: told how far the work is.

    Raises:
        DataError: the source is not Market-1501, is incomplete, unsafe, or has broken images.
    """
    name = "market1501"
    path = manifests.manifest_path(data_root, name)

    def labels(root: Path) -> tuple[list[ImageRecord], list[str]]:
        records = market1501.read(root, progress=progress)
        differences = market1501.differences(root, manifests.count_splits(records))
        if differences and not allow_partial:
            raise DataError(
                f"{root} is not the full Market-1501: {'; '.join(differences)}; "
                "complete it, or pass --allow-partial to use it as it is"
            )
        return records, differences

    _check_exists(source)
    if source.is_dir():
        root = market1501.find_root(source)
        records, notes = labels(root)
        verified = _verify(root, records, verify=verify, workers=workers, progress=progress)
    else:
        images = path.parent / "images"
        with staged_folder(images) as stage:
            # The hand-drawn boxes of gt_bbox, half of the archive, are not needed.
            extract_zip(
                source,
                stage,
                keep=lambda member: member.parent.name in market1501.FOLDERS.values(),
                progress=progress,
            )
            staged_root = market1501.find_root(stage)
            records, notes = labels(staged_root)
            verified = _verify(
                staged_root, records, verify=verify, workers=workers, progress=progress
            )
            root = images / staged_root.relative_to(stage)
    written = manifests.write_manifest(
        path, name=name, root=root, records=records, split_rule=market1501.SPLIT_RULE
    )
    return _result(path, written, notes=notes, verified=verified, published=market1501.PUBLISHED)


def _check_exists(source: Path) -> None:
    """Raise unless the path that the user gave is there."""
    if not source.exists():
        raise DataError(f"{source} does not exist; give the path of a folder or an archive")


def _verify(
    root: Path, records: Sequence[ImageRecord], *, verify: bool, workers: int, progress: Progress
) -> int:
    """Decode all images and raise for bad ones; return how many were decoded."""
    if not verify:
        return 0
    paths = {record.path for record in records}
    raise_for_bad(root, verify_images(root, paths, workers=workers, progress=progress))
    return len(paths)


def _result(
    path: Path,
    written: Manifest,
    *,
    notes: Sequence[str],
    verified: int,
    published: Mapping[Split, SplitCounts] | None,
) -> PreparedDataset:
    """Put the result together."""
    return PreparedDataset(
        name=written.name,
        manifest=path,
        root=written.root,
        counts=written.counts,
        published=published,
        notes=(*notes, *_unusual(written)),
        images_verified=verified,
    )


def _unusual(written: Manifest) -> list[str]:
    """Note what spoils training or scores without being an error."""
    notes = [f"{split}: no images" for split in SPLITS if written.counts[split].images == 0]
    ids = {
        split: {record.person_id for record in written.split(split)} - {JUNK} for split in SPLITS
    }
    for split in SPLITS[1:]:
        # A distractor is nobody, whatever training calls its identity 0.
        shared = sorted((ids["train"] & ids[split]) - {DISTRACTOR})
        if shared:
            listed = ", ".join(str(person_id) for person_id in shared[:5])
            notes.append(
                f"{len(shared):,} identities of train are also in {split} ({listed}{', ...' if shared[5:] else ''}): "
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
            f"{same_camera:,} of {len(query):,} queries have gallery images from their own camera only, "
            "which evaluation leaves out"
        )
    return notes

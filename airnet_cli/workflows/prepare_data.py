"""From images as they come to a prepared data set: a function for each kind of source.

Each says how labels are read; `preparing.prepare` does the rest. Nothing here loads torch.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from airnet_cli.core.data.archive import extract_zip
from airnet_cli.core.data.manifest import count_splits
from airnet_cli.core.data.readers import cuhk03, cuhk03_mat, folder, market1501, msmt17, table
from airnet_cli.core.data.readers.split_folders import FOLDERS
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.core.data.splits import SplitPeople, split_people
from airnet_cli.core.files import is_file
from airnet_cli.errors import DataError, UsageError, listed
from airnet_cli.workflows.preparing import (
    UNPACKED,
    Labels,
    PreparedDataset,
    PrepareOptions,
    check_source,
    is_zip,
    name_of,
    prepare,
)


def prepare_market1501(source: Path, options: PrepareOptions) -> PreparedDataset:
    """Prepare Market-1501 from the official folder or zip as data set `market1501`.

    Raises:
        DataError: the source is not Market-1501, is incomplete or unsafe, or has broken images.
    """

    def read(above: Path) -> Labels:
        recipe, root = market1501.RECIPE, market1501.find_root(above)
        records = recipe.read(root, progress=options.progress)
        notes = recipe.differences(root, count_splits(records))
        labels = Labels(root, records, recipe.split_rule, notes, published=recipe.published)
        return _complete("Market-1501", labels, options)

    # The hand-drawn boxes of gt_bbox, much of the archive, are not needed.
    return _prepare_folder_or_zip("market1501", source, read, options, keep=_is_of_splits)


def prepare_msmt17(
    source: Path, options: PrepareOptions, *, lists: msmt17.Lists = "train+val"
) -> PreparedDataset:
    """Prepare MSMT17, V1 or V2, from its official folder or a zip of it as data set `msmt17`.

    Args:
        source: folder or zip; with the lists next to the folders of images.
        options: shared by all kinds.
        lists: which lists train: `train+val` as in the paper, or `train` alone.

    Raises:
        DataError: the source is not MSMT17, is incomplete or unsafe, or has broken images.
    """

    def read(above: Path) -> Labels:
        found = msmt17.read(above, lists=lists, progress=options.progress)
        labels = Labels(
            found.root, found.records, found.split_rule, found.problems, published=found.published
        )
        return _complete("MSMT17", labels, options)

    return _prepare_folder_or_zip("msmt17", source, read, options, keep=_is_of_msmt17)


def prepare_cuhk03(
    source: Path,
    options: PrepareOptions,
    *,
    boxes: cuhk03.Boxes,
    protocol: Path | None = None,
) -> PreparedDataset:
    """Prepare one of CUHK03's two cuts by the new protocol as `cuhk03-labeled` or `-detected`.

    Args:
        source: the new protocol's image folders, or `cuhk-03.mat`, or a folder or zip with either.
        options: shared by all kinds.
        boxes: labeled or detected.
        protocol: the new protocol's `.mat`, or its folder; None: next to `cuhk-03.mat`.

    Raises:
        DataError: the source is not CUHK03, is incomplete or unsafe, or has broken images; or
            h5py, which reads `cuhk-03.mat`, is not installed.
        UsageError: a protocol for image folders, which have a split already.
    """

    def complete(root: Path, records: Sequence[ImageRecord], problems: Sequence[str]) -> Labels:
        recipe = cuhk03.RECIPES[boxes]
        notes = [*problems, *cuhk03.differences(root, count_splits(records), boxes=boxes)]
        labels = Labels(root, records, recipe.split_rule, notes, published=recipe.published)
        return _complete("CUHK03", labels, options)

    def read(root: Path) -> Labels:
        if protocol is not None:
            raise UsageError(
                f"the split of {root} is that of its folders, so --protocol {protocol} does not "
                f"fit; leave it out, or give {cuhk03_mat.IMAGES_FILE}"
            )
        return complete(root, cuhk03.RECIPES[boxes].read(root, progress=options.progress), [])

    def extract(images: Path, stage: Path) -> Labels:
        places = [images.parent, images.parent.parent, source.parent]
        split = cuhk03_mat.find_protocol(boxes, given=protocol, places=places)
        cells = cuhk03_mat.read_protocol(split)
        root = stage / boxes
        missing = cuhk03_mat.extract(images, cells, root, boxes=boxes, progress=options.progress)
        problems = [f"{len(missing):,} images are not in {images.name} ({listed(missing)})"]
        absent = set(missing)
        records = [cell.record for cell in cells if cell.record.path not in absent]
        return complete(root, records, problems if missing else [])

    def unpack(stage: Path) -> Labels:
        unpacked = stage / UNPACKED
        unpacked.mkdir()
        extract_zip(
            source,
            unpacked,
            keep=lambda file: file.suffix.lower() == ".mat" or _is_of_splits(file),
            progress=options.progress,
        )
        root, images = _find_cuhk03(unpacked, source, boxes)
        labels = extract(images, stage) if root is None else read(root.rename(stage / boxes))
        shutil.rmtree(unpacked, ignore_errors=True)
        return labels

    def labels(stage: Path) -> Labels:
        is_matlab = source.is_dir() or source.suffix.lower() == ".mat"
        return extract(images, stage) if is_matlab else unpack(stage)

    check_source(source)
    root, images = _find_cuhk03(source, source, boxes) if source.is_dir() else (None, source)
    name = f"cuhk03-{boxes}"
    if root is None:
        return prepare(name, source, labels, options, in_stage=True)
    return prepare(name, root, read, options, in_stage=False)


def prepare_folder(
    source: Path,
    options: PrepareOptions,
    *,
    pattern: str | None,
    test_share: float,
    seed: int,
) -> PreparedDataset:
    """Prepare the user's own images from one folder per person, or from names with ids.

    Args:
        source: folder, or a zip of one.
        options: shared by all kinds; `allow_partial` leaves out images without labels.
        pattern: where ids are in the names (`readers.folder`); None: the folders are the people.
        test_share: share of the identities to test on, from 0 to 1; the others train.
        seed: draws the test people and their queries.

    Raises:
        DataError: no images, images without labels (the first ten are listed), a split on which
            nothing can be scored, broken images, or an unsafe archive.
        UsageError: a pattern that can't be understood.
    """
    understood = None if pattern is None else folder.parse_pattern(pattern)
    where = "one folder per person" if pattern is None else f"names like {pattern}"

    def read(above: Path) -> Labels:
        root = above if above is source else _wrapped(above)
        found = folder.read(root, understood, progress=options.progress)
        notes = []
        if found.strange:
            why = "lie in no folder of a person" if pattern is None else f"do not fit {pattern!r}"
            what = f"{len(found.strange):,} images under {root} {why}: {listed(found.strange)}"
            if not options.allow_partial or not found.images:
                raise DataError(
                    f"{what}; move or rename them, correct --pattern, "
                    "or leave them out with --allow-partial"
                )
            notes = [f"left out: {what}"]
        split = split_people(found.images, test_share=test_share, seed=seed)
        return Labels(
            root=root,
            records=split.records,
            split_rule=f"{where}; {test_share:g} of the identities to test, drawn with seed {seed}",
            notes=[*notes, *_notes_of_split(split)],
            person_names=split.person_names,
            camera_names=split.camera_names,
        )

    check_source(source)
    if not source.is_dir() and not is_zip(source):
        raise DataError(f"{source} is neither a folder nor a zip; give the folder of the images")
    name = options.name or name_of(source.resolve())
    return _prepare_folder_or_zip(name, source, read, options)


def prepare_csv(
    source: Path, options: PrepareOptions, *, images: Path | None = None
) -> PreparedDataset:
    """Prepare the user's own images from a table (`readers.table`), or a zip with table and images.

    Args:
        source: CSV file, or a zip that holds exactly one and the images that it names.
        options: shared by all kinds; `allow_partial` leaves out rows whose image is missing.
        images: folder or zip that the table's paths are relative to; None: the table's own folder.

    Raises:
        DataError: bad rows (the first ten are listed), missing or broken images, an unsafe archive.
        UsageError: `images` for a zip, which has its own.
    """

    def read(path: Path, rows: Sequence[table.TableRow], root: Path) -> Labels:
        return _table_labels(path, rows, root, split_of=source, options=options)

    def unpack_both(stage: Path) -> Labels:
        extract_zip(source, stage, progress=options.progress)
        found = _only_table(stage, source)
        return read(found, table.read(found), found.parent)

    def unpack_images(stage: Path) -> Labels:
        assert images is not None
        rows = table.read(source)
        extract_zip(images, stage, progress=options.progress)
        return read(source, rows, _best_root(stage, rows))

    check_source(source)
    name = options.name or name_of(source)
    if source.is_dir():
        raise DataError(f"{source} is a folder; give the CSV table, and the folder with --images")
    labels: Callable[[Path], Labels]
    if is_zip(source):
        if images is not None:
            raise UsageError(
                f"{source} is an archive with its own images, so --images {images} does not fit; "
                "leave --images out or give the .csv table"
            )
        labels, in_stage = unpack_both, True
    elif images is not None and not images.is_dir():
        check_source(images)
        labels, in_stage = unpack_images, True
    else:
        root = source.parent if images is None else images
        labels, in_stage = (lambda _: read(source, table.read(source), root)), False
    given = source if images is None else images
    return prepare(name, given, labels, options, in_stage=in_stage)


def prepare_demo(options: PrepareOptions, *, seed: int) -> PreparedDataset:
    """Draw the generated people of `seed` and prepare them as data set `demo`.

    Raises:
        DataError: the images can't be written.
    """
    from airnet_cli.core.data.demo import generate

    def draw(stage: Path) -> Labels:
        return Labels(
            root=stage,
            records=generate(stage, seed=seed, progress=options.progress),
            split_rule=f"generated from seed {seed}",
        )

    return prepare("demo", options.data_root, draw, options, in_stage=True)


def _prepare_folder_or_zip(
    name: str,
    source: Path,
    read: Callable[[Path], Labels],
    options: PrepareOptions,
    *,
    keep: Callable[[PurePosixPath], bool] = lambda file: True,
) -> PreparedDataset:
    """Prepare a folder as it is, or a zip by unpacking the members that `keep` accepts."""

    def unpack(stage: Path) -> Labels:
        extract_zip(source, stage, keep=keep, progress=options.progress)
        return read(stage)

    check_source(source)
    is_folder = source.is_dir()
    return prepare(name, source, read if is_folder else unpack, options, in_stage=not is_folder)


def _complete(what: str, labels: Labels, options: PrepareOptions) -> Labels:
    """Refuse a published data set whose notes say that it is not complete."""
    if labels.notes and not options.allow_partial:
        raise DataError(
            f"{labels.root} is not the full {what}: {'; '.join(labels.notes)}; "
            "complete it, or pass --allow-partial to use it as it is"
        )
    return labels


def _find_cuhk03(above: Path, source: Path, boxes: cuhk03.Boxes) -> tuple[Path | None, Path]:
    """The folder with the images of `boxes`, or else (None and) `cuhk-03.mat`."""
    root = cuhk03.find_root(above, boxes=boxes)
    images = cuhk03_mat.find_images(above) if root is None else above
    if images is None:
        raise DataError(
            f"{source} is not CUHK03: it has neither the new protocol's folders "
            f"({boxes}/{FOLDERS['train']}, ...) nor {cuhk03_mat.IMAGES_FILE}; "
            "give the folder or zip that has one of them"
        )
    return root, images


def _is_of_splits(file: PurePosixPath) -> bool:
    return file.parent.name in FOLDERS.values()


def _is_of_msmt17(file: PurePosixPath) -> bool:
    folders = [name for names in msmt17.FOLDERS.values() for name in names]
    return file.name in msmt17.LISTS or file.parent.parent.name in folders


def _wrapped(stage: Path) -> Path:
    """The single folder in which most archives wrap everything, or `stage` itself."""
    inside = [path for path in stage.iterdir() if not path.name.startswith(".")]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else stage


def _notes_of_split(split: SplitPeople) -> list[str]:
    notes = []
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
    return notes


def _only_table(stage: Path, source: Path) -> Path:
    tables = sorted(path for path in stage.rglob("*") if path.suffix.lower() == ".csv")
    if len(tables) != 1:
        found = ", ".join(path.relative_to(stage).as_posix() for path in tables[:10])
        raise DataError(
            f"{source} must hold exactly one .csv table, and holds "
            f"{f'{len(tables)}: {found}' if tables else 'none'}; "
            f"take the table out and run: airnet prepare-data csv TABLE --images {source}"
        )
    return tables[0]


def _table_labels(
    path: Path,
    rows: Sequence[table.TableRow],
    root: Path,
    *,
    split_of: Path,
    options: PrepareOptions,
) -> Labels:
    """The rows of a table whose images are under `root`."""
    rule = f"the column split of {split_of.name}"
    missing = [row for row in rows if not is_file(root / row.record.path)]
    if not missing:
        return Labels(root, [row.record for row in rows], rule)
    named = listed([f"line {row.line}: {row.record.path}" for row in missing])
    what = f"{len(missing):,} of {len(rows):,} images of {path.name} are not under {root}: {named}"
    if not options.allow_partial or len(missing) == len(rows):
        raise DataError(
            f"{what}; give their folder or zip with --images, "
            "or leave them out with --allow-partial"
        )
    absent = set(missing)
    records = [row.record for row in rows if row not in absent]
    return Labels(root, records, rule, notes=[f"left out: {what}"])


def _best_root(stage: Path, rows: Sequence[table.TableRow]) -> Path:
    """The folder that most paths are relative to: most archives wrap everything in one."""
    folders = [stage, *sorted(path for path in stage.iterdir() if path.is_dir())]
    return max(folders, key=lambda each: sum(is_file(each / row.record.path) for row in rows))

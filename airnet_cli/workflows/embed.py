"""Embed images into a gallery: one file, a folder, object storage, or a collection in Milvus.

All but Milvus compute parts (`embed_parts.py`). A single file, and what is added to a folder, is
computed in parts in a hidden folder next to its place, and joined at the end: to resume is to
compute the missing parts. With `shard_size` the parts themselves are the gallery.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from airnet_cli.core.distributed import launched_rank, launched_size, take_device
from airnet_cli.core.files import is_file
from airnet_cli.core.gallery.files import Gallery, write_gallery
from airnet_cli.core.gallery.folder import append, check_appendable, open_gallery
from airnet_cli.core.gallery.parts import (
    check_agreement,
    check_complete,
    clean,
    digest,
    read_snapshot,
    record_name,
)
from airnet_cli.core.gallery.place import MilvusPlace, gallery_place
from airnet_cli.core.gallery.storage import DiskFolder, folder_at, is_url
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.runtime import choose_device
from airnet_cli.errors import DataError, OutputError, UsageError
from airnet_cli.workflows.embed_milvus import embed_into_collection
from airnet_cli.workflows.embed_parts import EmbedOptions, Images, Noted, PartWorker, Session
from airnet_cli.workflows.embedded import EmbeddedGallery, split_seconds
from airnet_cli.workflows.runs import Model, find_model


def is_first_process() -> bool:
    """Whether this process is the first one that torchrun started, or the only one."""
    return launched_rank() == 0


def embed(
    options: EmbedOptions,
    *,
    on_model: Callable[[Model], None] = lambda _: None,
    noted: Noted = lambda _: None,
    progress: Progress = silent,
) -> EmbeddedGallery:
    """Embed images into the gallery `options.output`.

    Args:
        options: what to do. With `resume` the parts that a stopped job computed are kept. With
            `append` rows are added to a folder, and images that have a row get the new one
            instead. With `shard_size` only missing parts are computed, and under torchrun only
            those of this process.
        on_model: told which model is used before the work starts.
        noted: told what a user should know.
        progress: told after each batch.

    Raises:
        UsageError: options that don't go together, or a head that the network lacks.
        DataError: inputs that are missing or broken, an image that can't be read (unless
            `on_bad_image` is "skip"), a place that has another gallery or job.
        CheckpointError: no such run, checkpoint or exported file.
        OutputError: the gallery can't be written.
        RuntimeSetupError: this machine lacks the device or the engine.
    """
    place: Path | str | MilvusPlace = options.output
    if not is_url(place) or str(place).startswith(("milvus:", "milvuss:")):
        place = gallery_place(options.output)
    _check_place(options, place)
    model = find_model(options.model, options.runs_root)
    on_model(model)
    if isinstance(place, MilvusPlace):
        return embed_into_collection(options, place, model, noted, progress)
    if options.shard_size is not None:
        return _to_shards(options, place, model, noted, progress)
    assert isinstance(place, Path)
    if options.append:
        return _to_folder(options, place, model, noted, progress)
    return _to_file(options, place, model, noted, progress)


def _check_place(options: EmbedOptions, place: Path | str | MilvusPlace) -> None:
    """Refuse options that don't fit the kind of the output."""
    if isinstance(place, MilvusPlace):
        if options.dtype != "float32":
            raise UsageError(f"--dtype {options.dtype}: Milvus stores float32; leave it out")
        if options.shard_size is not None:
            raise UsageError("--shard-size computes parts of a folder; leave it out for Milvus")
        return
    urls = [str(each) for each in (*options.inputs, place) if is_url(each)]
    if options.shard_size is None:
        if options.engine != "local":
            raise UsageError(f"--engine {options.engine} computes shards; add --shard-size 10000")
        if urls:
            raise UsageError(
                f"'{urls[0]}' is in object storage, which needs shards; add --shard-size 10000"
            )
        is_npy = Path(place).suffix == ".npy"
        if options.append and (is_npy or is_file(Path(place))):
            raise UsageError(
                f"--append adds to a folder, and '{place}' is a file; give a folder, as in "
                "-o people/ --append"
            )
        if not options.append and not is_npy:
            raise UsageError(
                f"output '{place}' must end in .npy, as in -o gallery.npy, or be a folder with "
                "--append or --shard-size, as in -o people/ --append"
            )
        return
    if options.append:
        raise UsageError("--shard-size computes a whole gallery; leave --append out")
    if not is_url(place) and (str(place).endswith(".npy") or is_file(Path(place))):
        raise UsageError(
            f"with --shard-size the output is a folder, not the file '{place}', as in -o people/"
        )
    if len({is_url(each) for each in options.inputs}) > 1:
        raise UsageError(
            "some images are in object storage and some are files; embed them into two folders"
        )


def _to_file(
    options: EmbedOptions, output: Path, model: Model, noted: Noted, progress: Progress
) -> EmbeddedGallery:
    """Write one file."""
    work = output.with_name(f".{output.name}.parts")
    if options.resume and is_file(output.with_suffix(".json")) and not work.exists():
        raise DataError(f"gallery '{output}' is complete; to write it again, leave --resume out")
    images = Images.of(options, output.parent)
    with _working(work, output, options.resume, noted):
        worker = PartWorker(options, model, DiskFolder(work), images, noted=noted)
        session = _compute(worker, noted, progress, is_alone=True)
        rows, record = _joined(worker, work)
        record = write_gallery(output, rows, record)
    return _described(session, output, record, record["skipped"])


def _to_folder(
    options: EmbedOptions, folder: Path, model: Model, noted: Noted, progress: Progress
) -> EmbeddedGallery:
    """Add one part to a folder."""
    images = Images.of(options, folder)
    work = folder / f".append-{digest(images.columns)[:16]}.parts"
    with _working(work, folder, options.resume, noted):
        worker = PartWorker(options, model, DiskFolder(work), images, noted=noted)
        check_appendable(read_snapshot(DiskFolder(folder)), worker.record, folder)
        session = _compute(worker, noted, progress, is_alone=True)
        rows, record = _joined(worker, work)
        number, replaced = append(folder, rows, record)
    details = {"part": Path(record_name(number)).stem, "replaced": replaced}
    added = {**open_gallery(folder).record, "runtime": record["runtime"]}
    return _described(session, folder, added, record["skipped"], details)


def _to_shards(
    options: EmbedOptions, place: Path | str, model: Model, noted: Noted, progress: Progress
) -> EmbeddedGallery:
    """Compute missing parts of a folder that many processes may write."""
    folder, images = folder_at(place), Images.of(options, place)
    if options.engine == "ray":
        from airnet_cli.workflows.on_ray import Cluster  # imports the extra `ray`

        with Cluster() as cluster:
            session = cluster.compute(options, model, folder, images, progress)
    else:
        if launched_size() > 1:
            take_device(choose_device(options.device))
        worker = PartWorker(options, model, folder, images, options.shard_size, noted)
        try:
            session = _compute(worker, noted, progress, is_alone=False)
        except KeyboardInterrupt:
            noted("finished parts are kept; resume with the same command")
            raise
    parts, missing = session.worker.job.parts, session.worker.job.missing(folder)
    done = sum(each.is_ours for each in session.computed)
    shards = {"total": parts, "size": options.shard_size, "done": done}
    shards |= {"there": parts - done - len(missing), "missing": len(missing)}
    rows: int | None = None
    if not missing:
        snapshot = read_snapshot(folder)
        for record in snapshot.records.values():
            check_agreement(session.worker.record, record, str(folder))
        clean(folder)
        rows = sum(map(len, snapshot.kept.values()))
        if not rows:
            raise DataError(f"none of {len(images.places):,} images could be read")
    skipped = [image for each in session.computed for image in each.skipped]
    path = str(place) if is_url(place) else Path(place)
    record = {**session.worker.record, "rows": rows}
    return _described(session, path, record, skipped, {"shards": shards})


@contextlib.contextmanager
def _working(work: Path, output: Path, resume: bool, noted: Noted) -> Iterator[None]:
    """Lock the folder `work` for the parts of a job; it is removed if the block succeeds.

    Raises:
        DataError: another process has locked it.
        OutputError: it can't be created or locked.
    """
    from filelock import FileLock, Timeout

    above = [folder for folder in work.parents if not folder.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / ".lock", timeout=0, fallback_to_soft=False)
        lock.acquire()
    except Timeout:
        raise DataError(
            f"gallery '{output}' is being written by another process; wait for it, or choose "
            "another place with -o"
        ) from None
    except OSError as error:
        raise OutputError(
            f"can't write '{output}': {error.strerror or error}; choose another place"
        ) from error
    try:
        old = [path for path in work.iterdir() if path.name != ".lock"]
        if old and not resume:
            noted("starting again: the parts of a stopped job are computed again (no --resume)")
            for path in old:
                path.unlink()
        yield
        for record in work.glob("*.json"):  # first, so that no record names a removed file
            record.unlink()
        shutil.rmtree(work, ignore_errors=True)
    except KeyboardInterrupt:
        parts = read_snapshot(DiskFolder(work)).records.values()
        done = sum(part["rows"] + len(part["skipped"]) for part in parts)
        if done:
            noted(f"{done:,} images are done; resume with the same command and --resume")
        raise
    finally:
        if not any(work.glob("*.json")):
            shutil.rmtree(work, ignore_errors=True)
            for folder in above:
                with contextlib.suppress(OSError):  # it has something in it
                    folder.rmdir()
        lock.release()


def _described(
    session: Session,
    path: Path | str,
    record: dict[str, Any],
    skipped: Sequence[dict[str, str]],
    details: dict[str, Any] | None = None,
) -> EmbeddedGallery:
    """What the call did, when everything is written."""
    total = time.perf_counter() - session.started
    reading = sum(each.reading for each in session.computed)
    network = sum(each.network for each in session.computed)
    return EmbeddedGallery(
        path=path,
        record=record,
        skipped=tuple(skipped),
        model=session.worker.model,
        device=session.device,
        images=sum(each.images for each in session.computed),
        images_before=session.before,
        seconds=split_seconds(total, reading, network),
        details=details or {},
    )


def _compute(worker: PartWorker, noted: Noted, progress: Progress, *, is_alone: bool) -> Session:
    """Compute the missing parts; of those that torchrun started, this process's turn."""
    missing = worker.job.missing(worker.folder)
    total = len(worker.images.places)
    before = total - sum(worker.job.count(number, total) for number in missing)
    if before:
        noted(f"resuming after {before:,} of {total:,} images")
    started = time.perf_counter()
    size = launched_size()
    turn = [n for n in missing if is_alone or (n - 1) % size == launched_rank()]
    computed = tuple(worker.compute(turn, progress, is_alone=is_alone))
    return Session(
        worker=worker,
        device=worker.embedder.device.type,
        computed=computed,
        before=before,
        started=started,
    )


def _joined(worker: PartWorker, work: Path) -> tuple[Gallery, dict[str, Any]]:
    """All rows of a job, and the record that describes them."""
    snapshot = read_snapshot(worker.folder)
    check_complete(snapshot)
    skipped = [image for record in snapshot.records.values() for image in record["skipped"]]
    rows = open_gallery(work)
    if not len(rows.embeddings):
        raise DataError(
            f"none of {len(skipped):,} images could be read; the first: '{skipped[0]['path']}', "
            f"{skipped[0]['reason']}"
        )
    return rows, {**worker.record, "skipped": skipped}

"""Embed images into a gallery on disk, however many there are; go on where it was stopped.

Into one file, into a new segment of a folder of segments, or into a collection in Milvus.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from airnet_cli.core.checkpoint import library_versions
from airnet_cli.core.data.manifest import load_prepared
from airnet_cli.core.data.records import JUNK, Split
from airnet_cli.core.data.sources import Sources, list_images, path_key, relative_to_folder
from airnet_cli.core.engines import RuntimeName
from airnet_cli.core.files import is_file, lock_output, remove_parts
from airnet_cli.core.gallery import (
    DTypeName,
    GalleryWriter,
    Listing,
    gallery_files,
    images_of_stopped_job,
)
from airnet_cli.core.milvus import (
    CollectionWriter,
    MilvusPlace,
    file_stamp,
    gallery_place,
    make_collection,
)
from airnet_cli.core.processes import reporting_dead_workers
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.runtime import DeviceName, PrecisionName, has_native_bfloat16
from airnet_cli.core.segments import (
    Manifest,
    append_segment,
    changing,
    check_appendable,
    image_keys,
    is_segmented,
    next_segment,
    read_columns,
)
from airnet_cli.errors import DataError, OutputError, UsageError
from airnet_cli.workflows.collection import milvus_token
from airnet_cli.workflows.embedder import Embedder, OnBadImage
from airnet_cli.workflows.runs import Model, find_model

JSON_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Where the time of this session went, from the first image to the finished gallery."""

    total: float
    reading: float
    """Waiting for images; worker processes read while the network computes."""
    network: float
    writing: float


@dataclass(frozen=True, kw_only=True)
class EmbeddedGallery:
    """A gallery that was written, and how."""

    path: Path | MilvusPlace
    """Of the .npy file or the folder of segments, or where the collection is."""
    record: dict[str, Any]
    """The .json file beside it; of a folder, its manifest with the name of the new `segment` and
    the number of rows that it `replaced`; of a collection, what its description says, and counts.
    """
    model: Model
    device: str
    images: int
    """That went through in this session, those that were skipped included."""
    images_before: int
    """That an earlier session, which was stopped, had done."""
    seconds: Seconds

    @property
    def images_per_second(self) -> float:
        """Over everything in this session: reading, network and writing."""
        return self.images / self.seconds.total if self.seconds.total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `embed --json` (docs/formats.md)."""
        described = ("rows", "dimensions", "dtype", "fingerprint", "checkpoint", "run", "heads")
        settings = ("normalize_heads", "flip", "precision", "runtime", "skipped")
        of_segment = [key for key in ("segment", "replaced") if key in self.record]
        return {
            "version": JSON_VERSION,
            "gallery": str(self.path),
            **{key: self.record[key] for key in (*described, *settings, *of_segment)},
            "device": self.device,
            "images": self.images,
            "images_before": self.images_before,
            "images_per_second": self.images_per_second,
            "seconds": asdict(self.seconds),
        }


def embed(
    *,
    inputs: Sequence[Path],
    data_name: str | None,
    split: Split | None,
    data_root: Path,
    output: Path | str,
    model: Path | None,
    runs_root: Path,
    dtype: DTypeName,
    heads: Sequence[str] | None,
    flip: bool,
    batch_size: int | None,
    workers: int,
    device: DeviceName,
    precision: PrecisionName,
    on_bad_image: OnBadImage,
    resume: bool,
    on_model: Callable[[Model], None],
    noted: Callable[[str], None],
    progress: Progress = silent,
    runtime: RuntimeName = "torch",
    exported: Path | None = None,
    append: bool = False,
) -> EmbeddedGallery:
    """Embed all images of `inputs`, or of a split of a prepared data set, into the gallery
    `output`.

    Without `model` the newest finished run under `runs_root`; `on_model` hears which one before
    the work starts. Without `batch_size` that of the preset's evaluation. With `resume` a job that
    was stopped goes on, batch for batch as if it had not been: the files that come out are the
    same. `runtime` is what computes; an engine runs `exported`, or the file beside the checkpoint.

    With `append`, `output` is a folder of segments, which is made where it is missing: the images
    become a new segment, and rows that they had before are deleted in the same moment.

    `output` may be milvus://HOST:PORT/COLLECTION: then rows replace those of the same images, with
    `append` or without, and with `resume` the images that have a row, and did not change since, are
    left out.

    Raises:
        UsageError: `output` is neither a `.npy` path nor a collection, or, with `append`, it is a
            file; or the network lacks one of `heads`.
        DataError: inputs that are missing or broken, an image that can't be read (unless
            `on_bad_image` is "skip"), a job that can't be gone on with or that another process
            does, rows of the folder that were made in another way, no room on the disk.
        CheckpointError: no such run, checkpoint or exported file.
        RuntimeSetupError: this machine lacks the device or the engine.
    """
    place = gallery_place(output)
    if isinstance(place, Path):
        _check_output(place, append)
    if isinstance(place, MilvusPlace) and dtype != "float32":
        raise UsageError(f"--dtype {dtype}: collections in Milvus hold float32; leave it out")
    if data_name is not None and split is not None:
        sources = prepared_images(data_root, data_name, split)
    else:
        sources = list_images(inputs, must_exist=on_bad_image == "error")
    found = find_model(model, runs_root)
    on_model(found)
    embedder = Embedder.load(
        found.checkpoint,
        device=device,
        precision=precision,
        heads=heads,
        flip=flip,
        workers=workers,
        runtime=runtime,
        exported=exported,
    )
    # As in `evaluate`: the last digits hang on it, and so do the ranks of near ties.
    embedder.batch_size = batch_size or embedder.preset.evaluation.batch_size
    if precision == "bf16" and not has_native_bfloat16(embedder.device):
        noted(f"this {embedder.device.type} has no bfloat16 of its own; fp32 is faster here")
    if isinstance(place, MilvusPlace):
        return _embed_into_collection(
            embedder, sources, found, place, on_bad_image, resume, noted, progress
        )
    job = _Job(
        embedder=embedder,
        sources=sources,
        model=found,
        dtype=dtype,
        on_bad_image=on_bad_image,
        resume=resume,
        noted=noted,
        progress=progress,
    )
    if append:
        return _append(job, place)
    with _alone_with(place):
        return job.run(place, relative_to_folder(sources.paths, place.parent))


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Images that become one gallery on disk."""

    embedder: Embedder
    sources: Sources
    model: Model
    dtype: DTypeName
    on_bad_image: OnBadImage
    resume: bool
    noted: Callable[[str], None]
    progress: Progress

    def run(
        self,
        output: Path,
        paths: tuple[str, ...],
        published: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> EmbeddedGallery:
        """Write the gallery `output`, which nobody else writes; `paths` are what its table says.

        `published` is called with its record, and nothing is lost if that fails.
        """
        embedder, sources = self.embedder, self.sources
        stopped = images_of_stopped_job(output)
        if stopped and not self.resume:
            self.noted(
                f"starting again: {stopped:,} images of a stopped job are embedded anew "
                "(no --resume)"
            )
        try:
            with GalleryWriter(
                output,
                Listing(paths, sources.columns),
                dimensions=embedder.dimensions,
                dtype=self.dtype,
                settings=job_settings(embedder),
                resume=self.resume,
            ) as writer:
                before = writer.done
                if before:
                    self.noted(f"going on after {before:,} of {len(sources.paths):,} images")
                started = time.perf_counter()
                reading, network = write_rows(
                    embedder, sources, writer, self.on_bad_image, self.progress
                )
                record = writer.finish(gallery_record(embedder, self.model), published=published)
                total = time.perf_counter() - started
        except KeyboardInterrupt:
            done = images_of_stopped_job(output)
            if done:
                self.noted(f"{done:,} images are done; go on with the same command and --resume")
            raise
        return EmbeddedGallery(
            path=output,
            record=record,
            model=self.model,
            device=embedder.device.type,
            images=len(sources.paths) - before,
            images_before=before,
            seconds=Seconds(
                total=total, reading=reading, network=network, writing=total - reading - network
            ),
        )


def _check_output(place: Path, append: bool) -> None:
    """Refuse an output that is a file where a folder of segments is meant, or the other way."""
    if append and (place.suffix == ".npy" or is_file(place)):
        raise UsageError(
            f"--append adds to a folder of segments, and '{place}' is a file, which is written "
            "once; give a folder, as in -o people/ --append"
        )
    if append:
        return
    folder = place.parent if place.suffix == ".npy" else place
    if is_segmented(folder):
        raise UsageError(
            f"'{folder}' is a gallery of segments; add to it with -o {folder} --append, or choose "
            "another place"
        )
    if place.suffix != ".npy":
        raise UsageError(
            f"output '{place}' must end in .npy, as in -o gallery.npy, or be a folder to add to, "
            "as in -o people/ --append, or for shards, as in -o people/ --shard-size 10000"
        )


def _append(job: _Job, folder: Path) -> EmbeddedGallery:
    """Embed into a new segment of `folder`."""
    with _folder(folder), changing(folder) as manifest:
        known: list[str] = []
        if manifest is not None:
            made = gallery_record(job.embedder, job.model)
            made |= {"dimensions": job.embedder.dimensions, "dtype": job.dtype}
            check_appendable(folder, manifest, made)
            known = image_keys(read_columns(folder, manifest)["path"])
        after: list[tuple[Manifest, int]] = []

        def publish(record: dict[str, Any]) -> None:
            skipped = {image["path"] for image in record["skipped"]}
            new = set(image_keys([path for path in paths if path not in skipped]))
            gone = np.fromiter((key in new for key in known), np.bool_, len(known))
            after.append((append_segment(folder, manifest, record, gone), int(gone.sum())))

        paths = relative_to_folder(job.sources.paths, folder)
        segment = job.run(next_segment(folder, manifest), paths, publish)
    ((gallery, replaced),) = after
    of_segment = {key: segment.record[key] for key in ("runtime", "skipped")}
    of_segment |= {"segment": segment.path.name.removesuffix(".npy"), "replaced": replaced}
    return replace(segment, path=folder, record={**gallery.to_dict(), **of_segment})


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make the folder; one in which nothing came to be goes again."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"can't make the folder '{folder}': {error.strerror}; choose another place"
        ) from None
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # it has something in it
                folder.rmdir()


def _embed_into_collection(
    embedder: Embedder,
    sources: Sources,
    model: Model,
    place: MilvusPlace,
    on_bad_image: OnBadImage,
    resume: bool,
    noted: Callable[[str], None],
    progress: Progress,
) -> EmbeddedGallery:
    """Embed into Milvus; others may do so at the same time, each with images of their own."""
    record = gallery_record(embedder, model)
    del record["versions"]  # of one job; a collection outlives many
    collection = make_collection(
        place,
        record={
            **record,
            "dimensions": embedder.dimensions,
            "dtype": "float32",
            "columns": list(sources.columns),
        },
        token=milvus_token(),
    )
    keys = [path_key(path) for path in sources.paths]
    missing = list(range(len(keys)))
    if resume:
        stamps = collection.stamps(keys)
        missing = [i for i in missing if stamps.get(keys[i]) != file_stamp(sources.paths[i])]
    before = len(keys) - len(missing)
    if before:
        noted(f"{before:,} of {len(keys):,} images are there already")
    chosen = Sources(
        tuple(sources.paths[i] for i in missing),
        {name: tuple(cells[i] for i in missing) for name, cells in sources.columns.items()},
    )
    started = time.perf_counter()
    writer = CollectionWriter(
        collection,
        keys=[keys[i] for i in missing],
        paths=chosen.paths,
        columns=chosen.columns,
    )
    try:
        with writer:
            reading, network = write_rows(embedder, chosen, writer, on_bad_image, progress)
    except KeyboardInterrupt:
        noted(f"{writer.done:,} images are done; go on with the same command and --resume")
        raise
    total = time.perf_counter() - started
    return EmbeddedGallery(
        path=place,
        record={**collection.record, "rows": collection.count(), "skipped": writer.skipped},
        model=model,
        device=embedder.device.type,
        images=len(missing),
        images_before=before,
        seconds=Seconds(
            total=total, reading=reading, network=network, writing=total - reading - network
        ),
    )


@contextlib.contextmanager
def _alone_with(output: Path) -> Iterator[None]:
    """Lock the gallery while it is written: two processes would spoil each other's rows."""
    with lock_output(output) as is_ours:
        if not is_ours:
            raise DataError(
                f"gallery '{output}' is being written by another process; wait for it, or choose "
                "another place with -o"
            )
        for path in gallery_files(output):
            remove_parts(path.parent, path.name)
        yield


class _Writer(Protocol):
    """What takes embedded images, in order."""

    @property
    def done(self) -> int: ...

    def append(
        self,
        indices: Sequence[int],
        embeddings: npt.NDArray[np.floating[Any]],
        bad: Sequence[tuple[int, str]] = (),
    ) -> None: ...


def write_rows(
    embedder: Embedder,
    sources: Sources,
    writer: _Writer,
    on_bad_image: OnBadImage,
    progress: Progress,
    names: Sequence[object] | None = None,
) -> tuple[float, float]:
    """Embed what the writer has not got yet; the seconds of reading and of the network.

    Errors call the images by `names`, where they are not those of the files.

    Raises:
        DataError: an image can't be read (unless `on_bad_image` is "skip"), or the rows can't be
            written.
    """
    first = writer.done
    reading = network = 0.0
    progress("embedding", first, len(sources.paths), "images")
    with reporting_dead_workers("go on with --resume, and --workers 0"):
        for batch in embedder.embed_batches(sources.paths[first:]):
            if batch.bad and on_bad_image == "error":
                index, reason = batch.bad[0]
                raise DataError(
                    f"image '{(names or sources.paths)[first + index]}' can't be read: {reason}; "
                    "replace it and add --resume, or leave such images out with --on-bad-image skip"
                )
            writer.append(
                [first + index for index in batch.indices],
                batch.embeddings.numpy(),
                [(first + index, reason) for index, reason in batch.bad],
            )
            reading += batch.reading_seconds
            network += batch.network_seconds
            progress("embedding", writer.done, len(sources.paths), "images")
    return reading, network


def prepared_images(data_root: Path, name: str, split: Split) -> Sources:
    """The images that `evaluate` ranks (so no junk), with the columns that it needs."""
    manifest = load_prepared(data_root, name)
    records = [record for record in manifest.split(split) if record.person_id != JUNK]  # by path
    if not records:
        raise DataError(f"data set '{name}' has no {split} images; choose another --split")
    for record in records:
        try:
            record.path.encode()
        except UnicodeEncodeError:  # which the gallery's table could not name
            raise DataError(
                f"the name of {record.path!a} in data set '{name}' is not valid UTF-8; rename the "
                "image, and prepare the set again"
            ) from None
    return Sources(
        paths=tuple(manifest.root / record.path for record in records),
        columns={
            "person_id": tuple(str(record.person_id) for record in records),
            "camera_id": tuple(str(record.camera_id) for record in records),
        },
    )


def job_settings(embedder: Embedder) -> dict[str, Any]:
    """What must be the same for a stopped job to go on: everything that the last digits hang on."""
    return {
        "model": embedder.fingerprint,
        "heads": list(embedder.heads),
        "flip": embedder.flip,
        "precision": embedder.precision,
        "runtime": embedder.runtime,
        "batch size": embedder.batch_size,
        "device": embedder.device.type,
        "versions": library_versions(),
    }


def gallery_record(embedder: Embedder, model: Model) -> dict[str, Any]:
    """What the gallery's .json says beside the writer's own; no times: the same job, the same
    file.
    """
    return {
        "fingerprint": embedder.fingerprint,
        "checkpoint": str(model.checkpoint),
        "run": None if model.run is None else model.run.resolve().name,
        "variant": embedder.preset.model.variant,
        "backbone": embedder.preset.model.backbone,
        "heads": {name: [part.start, part.stop] for name, part in embedder.heads.items()},
        "preprocessing": {
            "height_px": embedder.height_px,
            "width_px": embedder.width_px,
            "colour": "RGB",
            "interpolation": "bilinear, antialiased",
        },
        "normalize_heads": embedder.normalize_heads,
        "flip": embedder.flip,
        "precision": embedder.precision,
        "runtime": embedder.runtime,
        "versions": library_versions(),
    }

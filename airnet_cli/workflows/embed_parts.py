"""Compute the parts of a job: images become rows, one part after the other.

Every process makes the same list of images and cuts it into the same parts. Which parts a process
computes doesn't change what they contain: a single process takes all of them, those of torchrun
take turns, and Ray hands them out (`on_ray.py`). A part that exists is not computed again.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from airnet_cli.core.checkpoint import library_versions
from airnet_cli.core.data.manifest import load_prepared
from airnet_cli.core.data.records import JUNK, Split
from airnet_cli.core.data.sources import Sources, list_images, path_key, relative_to_folder
from airnet_cli.core.engines import RuntimeName
from airnet_cli.core.gallery.files import DTYPES, DTypeName, write_matrix, write_table
from airnet_cli.core.gallery.parts import Job, check_job, digest, publish, record_name
from airnet_cli.core.gallery.storage import Folder, fetched, is_url, list_objects
from airnet_cli.core.inference import EmbeddedBatch
from airnet_cli.core.processes import reporting_dead_workers
from airnet_cli.core.progress import Progress
from airnet_cli.core.runtime import DeviceName, PrecisionName, has_native_bfloat16
from airnet_cli.errors import DataError
from airnet_cli.workflows.embedder import Embedder, OnBadImage
from airnet_cli.workflows.runs import Model

EngineName = Literal["local", "ray"]

Noted = Callable[[str], None]
"""Is told what a user should know."""

PART_IMAGES = 1024
"""About how many images a job that writes one file computes again when it was stopped."""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What to embed, how, and where to."""

    inputs: tuple[str | Path, ...] = ()
    """Folders, images, lists and tables, or URLs; empty for a split of a prepared data set."""
    data_name: str | None = None
    split: Split | None = None
    data_root: Path
    output: Path | str
    """A .npy file, a folder, a URL, or milvus://HOST:PORT/COLLECTION."""
    model: Path | None = None
    """A run or checkpoint; None: the newest finished run under `runs_root`."""
    runs_root: Path
    dtype: DTypeName = "float32"
    heads: tuple[str, ...] | None = None
    """Only these; None: all."""
    flip: bool = False
    batch_size: int | None = None
    """None: that of the preset's evaluation."""
    workers: int = 0
    device: DeviceName = "auto"
    precision: PrecisionName = "fp32"
    runtime: RuntimeName = "torch"
    exported: Path | None = None
    """What an engine runs; None: the file next to the checkpoint."""
    on_bad_image: OnBadImage = "error"
    resume: bool = False
    append: bool = False
    shard_size: int | None = None
    """Images of a part, in a folder that many processes write; None: one process writes."""
    engine: EngineName = "local"


@dataclass(frozen=True)
class Images:
    """All images of a job, in order."""

    places: tuple[Path | str, ...]
    """Paths as seen from the current folder, or URLs."""
    columns: dict[str, tuple[str, ...]]
    """What the gallery's table says about them: `path`, then the further columns."""

    @classmethod
    def of(cls, options: EmbedOptions, folder: Path | str) -> "Images":
        """List the images of a job whose gallery is in `folder`.

        Raises:
            DataError: inputs are missing or broken, or have no images.
        """
        if options.inputs and is_url(options.inputs[0]):
            urls = list_objects([str(url) for url in options.inputs])
            return cls(urls, {"path": urls})
        if options.data_name is not None and options.split is not None:
            sources = prepared_images(options.data_root, options.data_name, options.split)
        else:
            inputs = [Path(place) for place in options.inputs]
            sources = list_images(inputs, must_exist=options.on_bad_image == "error")
        for path in sources.paths:
            path_key(path)  # refuses names that a table can't hold
        # A bucket has no way back to a disk: paths are absolute there.
        paths = relative_to_folder(sources.paths, Path("/" if is_url(folder) else folder))
        if is_url(folder):
            paths = tuple(f"/{path}" for path in paths)
        return cls(sources.paths, {"path": paths, **sources.columns})

    @contextlib.contextmanager
    def files(self, parts: Sequence[slice]) -> Iterator[tuple[Path, ...]]:
        """Some of them as files; those from object storage are removed after the block."""
        places = [place for part in parts for place in self.places[part]]
        if places and is_url(places[0]):
            with fetched([str(place) for place in places]) as paths:
                yield paths
        else:
            yield tuple(Path(place) for place in places)


@dataclass(kw_only=True)
class Computed:
    """A part that was computed, and where the time went."""

    number: int
    is_ours: bool = True
    """False if another process published this part first."""
    images: int = 0
    """Those that were skipped included."""
    skipped: list[dict[str, str]] = field(default_factory=list)
    """Path and reason of each image that can't be read."""
    total: float = 0.0
    """Seconds, those of reading and of the network included."""
    reading: float = 0.0
    network: float = 0.0


class PartWorker:
    """A process with the network and the list of images, which can compute any part."""

    def __init__(
        self,
        options: EmbedOptions,
        model: Model,
        folder: Folder,
        images: Images,
        size: int | None = None,
        noted: Noted = lambda _: None,
    ) -> None:
        """Prepare to write parts of `size` images into `folder`; None: about `PART_IMAGES`.

        Raises:
            DataError: the folder has another gallery or another job.
            CheckpointError, UsageError, RuntimeSetupError: as `Embedder.load`.
        """
        self.model, self.folder, self.images = model, folder, images
        self.embedder = load_embedder(options, model, noted)
        self.record = gallery_record(self.embedder, model) | {"dtype": options.dtype}
        batch = self.embedder.batch_size
        size = size or batch * max(1, PART_IMAGES // batch)
        self.job = Job(math.ceil(len(images.places) / size), size, digest(images.columns))
        self._options = options
        check_job(folder, self.job, self.record)

    def compute(
        self, numbers: Sequence[int], progress: Progress, *, is_alone: bool = False
    ) -> Iterator[Computed]:
        """Compute parts.

        Args:
            numbers: of the parts.
            progress: told after each batch.
            is_alone: no other process writes here, and no batch crosses the end of a part: then
                all parts are read as one list, which keeps reading processes busy.

        Raises:
            DataError: an image can't be read (unless `on_bad_image` is "skip").
            OutputError: a part can't be written.
        """
        total = sum(self.job.count(number, len(self.images.places)) for number in numbers)
        done = 0
        progress("embedding", done, total, "images")
        groups = [list(numbers)] if is_alone else [[number] for number in numbers]
        for group in groups if numbers else []:
            if record_name(group[0]) in self.folder.names():
                done += self.job.count(group[0], len(self.images.places))
                continue  # another process was faster
            parts = [self.job.images(number) for number in group]
            with (
                self.images.files(parts) as paths,
                reporting_dead_workers("repeat the command with --resume and --workers 0"),
            ):
                batches = self._batches(paths, done, total, progress)
                for number in group:
                    computed = self._compute(number, batches)
                    done += computed.images
                    yield computed
                next(batches, None)  # ends the processes that read

    def _batches(
        self, paths: Sequence[Path], before: int, total: int, progress: Progress
    ) -> Iterator[EmbeddedBatch]:
        done = before
        for batch in self.embedder.embed_batches(paths):
            yield batch
            done += len(batch.indices) + len(batch.bad)
            progress("embedding", done, total, "images")

    def _compute(self, number: int, batches: Iterator[EmbeddedBatch]) -> Computed:
        """Write and publish the part whose batches come next."""
        started = time.perf_counter()
        part = self.job.images(number)
        paths, places = self.images.columns["path"][part], self.images.places[part]
        computed = Computed(number=number)
        kept: list[int] = []

        def rows() -> Iterator[npt.NDArray[np.floating[Any]]]:
            while computed.images < len(places):
                batch = next(batches)
                # A batch counts from the first image that was read, a part from its own first one.
                first = computed.images - min([*batch.indices, *(i for i, _ in batch.bad)])
                bad = [(first + index, reason) for index, reason in batch.bad]
                self._check_bad(bad, places)
                computed.skipped += [{"path": paths[i], "reason": r} for i, r in bad]
                computed.images += len(batch.indices) + len(bad)
                computed.reading += batch.reading_seconds
                computed.network += batch.network_seconds
                good = [first + index for index in batch.indices]
                kept.extend(good)
                yield self._stored(batch.embeddings.numpy(), [places[i] for i in good])

        def make(npy: Path, csv: Path) -> dict[str, Any]:
            count = write_matrix(npy, rows(), self.embedder.dimensions, self._options.dtype)
            columns = {name: cells[part] for name, cells in self.images.columns.items()}
            write_table(csv, {name: [c[i] for i in kept] for name, c in columns.items()})
            job = {**asdict(self.job), "part": number}
            return {**self.record, "rows": count, "skipped": computed.skipped, "job": job}

        computed.is_ours = publish(self.folder, number, make, hides={})
        computed.total = time.perf_counter() - started
        return computed

    def _check_bad(self, bad: Sequence[tuple[int, str]], places: Sequence[Path | str]) -> None:
        if bad and self._options.on_bad_image == "error":
            raise bad_image(places[bad[0][0]], bad[0][1])

    def _stored(
        self, embeddings: npt.NDArray[np.float32], places: Sequence[Path | str]
    ) -> npt.NDArray[np.floating[Any]]:
        """The embeddings (B, D) in the type of the file, if they are finite in it."""
        with np.errstate(over="ignore"):
            rows: npt.NDArray[np.floating[Any]] = embeddings.astype(DTYPES[self._options.dtype])
        is_finite = np.isfinite(rows).all(axis=1)
        if not is_finite.all():
            raise DataError(
                f"the embedding of '{places[int(np.argmin(is_finite))]}' is not finite in "
                f"{rows.dtype}; use --dtype float32 --precision fp32, or check the model"
            )
        return rows


@dataclass(frozen=True, kw_only=True)
class Session:
    """The parts that one call computed."""

    worker: PartWorker
    device: str
    computed: tuple[Computed, ...]
    before: int
    """Images of parts that existed before."""
    started: float
    """When the work began, by `time.perf_counter`."""


def bad_image(place: Path | str, reason: str) -> DataError:
    """The error about an image that can't be read."""
    return DataError(
        f"image '{place}' can't be read: {reason}; replace it and repeat the command with "
        "--resume, or leave such images out with --on-bad-image skip"
    )


def load_embedder(options: EmbedOptions, model: Model, noted: Noted) -> Embedder:
    """The model, ready to compute as the options say; `noted` is told what would be faster.

    Raises:
        as `Embedder.load`.
    """
    embedder = Embedder.load(
        model.checkpoint,
        device=options.device,
        precision=options.precision,
        heads=options.heads,
        flip=options.flip,
        workers=options.workers,
        runtime=options.runtime,
        exported=options.exported,
    )
    # As in `evaluate`: the last digits depend on it, and with them the ranks of near ties.
    embedder.batch_size = options.batch_size or embedder.preset.evaluation.batch_size
    if options.precision == "bf16" and not has_native_bfloat16(embedder.device):
        noted(f"this {embedder.device.type} has no bfloat16 of its own; fp32 is faster here")
    return embedder


def prepared_images(data_root: Path, name: str, split: Split) -> Sources:
    """The images that `evaluate` ranks (without junk), with the columns that it needs."""
    manifest = load_prepared(data_root, name)
    records = [record for record in manifest.split(split) if record.person_id != JUNK]  # by path
    if not records:
        raise DataError(f"data set '{name}' has no {split} images; choose another --split")
    return Sources(
        paths=tuple(manifest.root / record.path for record in records),
        columns={
            "person_id": tuple(str(record.person_id) for record in records),
            "camera_id": tuple(str(record.camera_id) for record in records),
        },
    )


def gallery_record(embedder: Embedder, model: Model) -> dict[str, Any]:
    """What a gallery's record says about the model; no times: the same job, the same file."""
    return {
        "fingerprint": embedder.fingerprint,
        "checkpoint": str(model.checkpoint),
        "run": None if model.run is None else model.run.resolve().name,
        "variant": embedder.preset.model.variant,
        "backbone": embedder.preset.model.backbone,
        "dimensions": embedder.dimensions,
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

"""One process that computes shards: the same for all engines.

It makes the list of images, the network and the plan by itself, from the little that it is told,
and then computes any shard, in a place of its own. That a shard came out is seen by its files.
"""

import contextlib
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from airnet_cli.core.data.records import Split
from airnet_cli.core.data.sources import Sources, list_images, relative_to_folder
from airnet_cli.core.engines import RuntimeName
from airnet_cli.core.files import lock_folder, reason_of
from airnet_cli.core.gallery import DTypeName, GalleryWriter, Listing
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.runtime import DeviceName, PrecisionName, has_native_bfloat16
from airnet_cli.core.shards import Plan, find_shard, planned_threads, put_shard, settle
from airnet_cli.core.storage import DiskFolder, Folder, fetched, is_url, list_objects, open_folder
from airnet_cli.errors import AirnetError, OutputError
from airnet_cli.workflows.embed import (
    Seconds,
    gallery_record,
    job_settings,
    prepared_images,
    write_rows,
)
from airnet_cli.workflows.embedder import Embedder, OnBadImage
from airnet_cli.workflows.runs import Model


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What every process is told, the same."""

    inputs: tuple[str, ...]
    """Folders, images, lists and tables; or URLs. Empty for a split of a prepared data set."""
    data_name: str | None
    split: Split | None
    data_root: Path
    output: str
    """A folder or a URL."""
    model: Path | None
    runs_root: Path
    shard_size: int
    dtype: DTypeName
    heads: tuple[str, ...] | None
    flip: bool
    batch_size: int | None
    workers: int
    device: DeviceName
    precision: PrecisionName
    runtime: RuntimeName
    exported: Path | None
    on_bad_image: OnBadImage

    def anywhere(self, model: Model) -> "ShardJob":
        """The same job for a process in another folder, on a machine that has the same files."""

        def absolute(place: str) -> str:
            return place if is_url(place) else str(Path(place).absolute())

        return replace(
            self,
            inputs=tuple(map(absolute, self.inputs)),
            output=absolute(self.output),
            data_root=self.data_root.absolute(),
            model=model.checkpoint.absolute(),
            exported=None if self.exported is None else self.exported.absolute(),
        )


@dataclass(frozen=True)
class Images:
    """All images of a job, in order."""

    places: tuple[Path, ...] | tuple[str, ...]
    """Where they are: paths as seen from the current folder, or URLs."""
    listing: Listing
    """What the gallery says of them."""

    @property
    def are_objects(self) -> bool:
        """Whether they have to be fetched."""
        return is_url(self.places[0])

    @contextlib.contextmanager
    def files(self, part: slice) -> Iterator[Sources]:
        """Some of them as files, which may be gone after the block."""
        columns = {name: cells[part] for name, cells in self.listing.columns.items()}
        if self.are_objects:
            with fetched([str(place) for place in self.places[part]]) as paths:
                yield Sources(paths, columns)
        else:
            yield Sources(tuple(Path(place) for place in self.places[part]), columns)

    def part(self, part: slice) -> Listing:
        """What the gallery says of some of them."""
        columns = {name: cells[part] for name, cells in self.listing.columns.items()}
        return Listing(self.listing.paths[part], columns)


NO_TIME = Seconds(total=0.0, reading=0.0, network=0.0, writing=0.0)


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What became of a shard in one session."""

    number: int
    state: Literal["done", "there", "elsewhere"]
    """Computed here; found there; being computed by another process of this machine."""
    images: int = 0
    """That went through here."""
    images_before: int = 0
    """That an earlier session, which was stopped, had done."""
    skipped: tuple[dict[str, str], ...] = ()
    seconds: Seconds = NO_TIME


class ShardWorker:
    """One process with the network, the list of images and the plan: it can compute any shard."""

    def __init__(
        self, job: ShardJob, model: Model, planned_device: DeviceName | None = None
    ) -> None:
        """Prepare; the plan is made, or found.

        Args:
            job: what is to be done.
            model: where the network is.
            planned_device: what those who compute do so on; None: this process's device.
        """
        self._job = job
        self.folder: Folder = open_folder(job.output)
        threads = planned_threads(self.folder)
        if threads is not None:
            torch.set_num_threads(threads)
        self._images = _images_of(job)
        self._embedder = _load(job, model)
        device = planned_device or self._embedder.device.type
        self.plan = settle(self.folder, self._plan(model, device))
        if self.plan.threads != torch.get_num_threads():  # another one was first meanwhile
            torch.set_num_threads(self.plan.threads)
            self._embedder = _load(job, model)  # an engine is told when it is opened

    @property
    def device(self) -> str:
        """What this process computes on."""
        return self._embedder.device.type

    def advise(self, noted: Callable[[str], None]) -> None:
        """Say what would be quicker."""
        device = self._embedder.device
        if self._job.precision == "bf16" and not has_native_bfloat16(device):
            noted(f"this {device.type} has no bfloat16 of its own; fp32 is faster here")

    def compute_all(
        self, numbers: Sequence[int], progress: Progress, noted: Callable[[str], None]
    ) -> Iterator[Computed]:
        """Compute these shards but for those that are there, one after the other."""
        total = sum(map(self.plan.size, numbers))
        before = 0
        for number in numbers:
            inside = _shifted(progress, before, total)
            inside("embedding", 0, None, "images")
            computed = self.compute(number, inside)
            if computed.state == "elsewhere":
                noted(f"{self.plan.name(number)} is left to another process, which computes it")
            before += self.plan.size(number)
            yield computed
        progress("embedding", total, total, "images")

    def compute(self, number: int, progress: Progress = silent) -> Computed:
        """Compute a shard, unless it is there.

        Raises:
            as `embed_shards`.
        """
        if find_shard(self.folder, self.plan, number):
            return Computed(number=number, state="there")
        name = self.plan.name(number)
        with _workplace(self.folder, name) as place:
            if place is None:
                return Computed(number=number, state="elsewhere")
            try:
                return self._compute(number, name, place, progress)
            except (AirnetError, OSError):
                # Whoever put it there, and cleared up, may have taken our files away.
                if find_shard(self.folder, self.plan, number):
                    return Computed(number=number, state="there")
                raise

    def _compute(self, number: int, name: str, place: Path, progress: Progress) -> Computed:
        started = time.perf_counter()
        done, before, reading, network = 0, self.plan.size(number), 0.0, 0.0
        skipped: tuple[dict[str, str], ...] = ()
        if not _is_made(place, self.plan, number):
            with (
                self._images.files(self.plan.part(number)) as files,
                self._writer(number, place / f"{name}.npy") as writer,
            ):
                before = writer.done
                reading, network = write_rows(
                    self._embedder,
                    files,
                    writer,
                    self._job.on_bad_image,
                    progress,
                    names=self._images.places[self.plan.part(number)],
                )
                record = self.plan.shard_record(number)
                skipped = tuple(writer.finish(record, may_be_empty=True)["skipped"])
                done = self.plan.size(number) - before
        is_ours = put_shard(self.folder, name, place)
        shutil.rmtree(place, ignore_errors=True)
        total = time.perf_counter() - started
        seconds = Seconds(
            total=total, reading=reading, network=network, writing=total - reading - network
        )
        return Computed(
            number=number,
            state="done" if is_ours else "there",
            images=done,
            images_before=before,
            skipped=skipped,
            seconds=seconds,
        )

    def _writer(self, number: int, path: Path) -> GalleryWriter:
        """What takes the rows of a shard; one that was stopped is gone on with."""

        def writer(resume: bool) -> GalleryWriter:
            return GalleryWriter(
                path,
                self._images.part(self.plan.part(number)),
                dimensions=self._embedder.dimensions,
                dtype=self._job.dtype,
                settings=self.plan.settings,
                resume=resume,
                folder=Path(self._job.output),
            )

        if self._images.are_objects:  # whether they changed can't be seen
            return writer(resume=False)
        try:
            return writer(resume=True)
        except AirnetError:  # its images were changed since, or it is damaged: it was no shard yet
            return writer(resume=False)

    def _plan(self, model: Model, device: str) -> Plan:
        embedder, listing = self._embedder, self._images.listing
        return Plan(
            images=len(listing.paths),
            images_sha256=listing.digest(),
            shard_size=self._job.shard_size,
            settings={
                **job_settings(embedder),
                "device": device,
                "dimensions": embedder.dimensions,
                "dtype": self._job.dtype,
                "threads": torch.get_num_threads(),
            },
            record=gallery_record(embedder, model),
        )


def _images_of(job: ShardJob) -> Images:
    if job.inputs and is_url(job.inputs[0]):
        urls = list_objects(job.inputs)
        return Images(urls, Listing(urls, {}))
    if job.data_name is not None and job.split is not None:
        sources = prepared_images(job.data_root, job.data_name, job.split)
    else:
        inputs = [Path(place) for place in job.inputs]
        sources = list_images(inputs, must_exist=job.on_bad_image == "error")
    # A bucket has no way back to a disk: there, paths are as seen from the root.
    folder = Path("/") if is_url(job.output) else Path(job.output)
    paths = relative_to_folder(sources.paths, folder)
    if is_url(job.output):
        paths = tuple(f"/{path}" for path in paths)
    return Images(sources.paths, Listing(paths, sources.columns))


def _load(job: ShardJob, model: Model) -> Embedder:
    embedder = Embedder.load(
        model.checkpoint,
        device=job.device,
        precision=job.precision,
        heads=job.heads,
        flip=job.flip,
        workers=job.workers,
        runtime=job.runtime,
        exported=job.exported,
    )
    embedder.batch_size = job.batch_size or embedder.preset.evaluation.batch_size
    return embedder


def _shifted(progress: Progress, before: int, all_images: int) -> Progress:
    """What a shard is told to tell: its images come after those `before` it."""

    def inside(stage: str, done: int, total: int | None, unit: str) -> None:
        progress(stage, before + done, all_images, unit)

    return inside


@contextlib.contextmanager
def _workplace(folder: Folder, name: str) -> Iterator[Path | None]:
    """A folder in which a shard is made by this process alone; None where another has it.

    Beside the shards its name has the machine's: locks of other machines are not always seen.
    """
    if not isinstance(folder, DiskFolder):
        with tempfile.TemporaryDirectory(prefix="airnet-", ignore_cleanup_errors=True) as here:
            yield Path(here)
        return
    machine = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]
    place = folder.path / f".{name}.{machine}.part"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"can't write '{folder.path}': {reason_of(error)}; choose another place"
        ) from None
    try:
        with lock_folder(place) as is_ours:
            yield place if is_ours else None
    finally:
        with contextlib.suppress(OSError):  # not empty: an unfinished shard, or locked
            place.rmdir()


def _is_made(place: Path, plan: Plan, number: int) -> bool:
    """Whether a process that was killed had only to put the shard there."""
    try:
        return find_shard(DiskFolder(place), plan, number) is not None
    except AirnetError:
        return False
